"""The tests above would be worth nothing if a wrong module passed them: here are wrong ones."""

from __future__ import annotations

import pytest

WRONG_CODE = {
    "a misspelt argument": (
        "modules/key",
        "main.tf",
        "enable_key_rotation ",
        "enable_key_rotations",
        'argument named "enable_key_rotations" is not expected',
    ),
    "a missing argument": (
        "modules/network",
        "flow_logs.tf",
        "  role = aws_iam_role.flow.id\n",
        "",
        'The argument "role" is required',
    ),
    "a wrong type": (
        "modules/network",
        "main.tf",
        "enable_dns_support   = true",
        'enable_dns_support   = "often"',
        'Inappropriate value for attribute "enable_dns_support": a bool is required',
    ),
    "a misspelt block": (
        "modules/storage",
        "lifecycle.tf",
        "    noncurrent_version_expiration {",
        "    noncurrent_versions_expiration {",
        'Blocks of type "noncurrent_versions_expiration" are not expected here',
    ),
    "an argument inside a block": (
        "modules/nodes",
        "main.tf",
        '    http_tokens                 = "required"',
        '    http_token                  = "required"',
        'argument named "http_token" is not expected',
    ),
    "an attribute that there is not": (
        "modules/eks",
        "outputs.tf",
        "aws_eks_cluster.this.endpoint",
        "aws_eks_cluster.this.url",
        'no argument, nested block, or exported attribute named "url"',
    ),
    "a resource that there is not": (
        "modules/key",
        "main.tf",
        'resource "aws_kms_alias" "this"',
        'resource "aws_kms_nickname" "this"',
        'does not support resource type "aws_kms_nickname"',
    ),
    "a setting of a provider": (
        "local",
        "main.tf",
        "    s3 = var.endpoint",
        "    s4 = var.endpoint",
        '"s4" is not expected',
    ),
    "an argument of a chart": (
        ".",
        "addons.tf",
        'chart            = "kueue"',
        'charts           = "kueue"',
        'argument named "charts" is not expected',
    ),
}


@pytest.mark.parametrize("mutation", WRONG_CODE)
def test_validation_refuses(workspace, mutation):
    folder, path, old, new, said = WRONG_CODE[mutation]
    there = workspace(folder, init=False)
    there.edit(path, old, new)
    there.run("init", "-backend=false", check=False)
    assert said.lower() in there.said("validate").lower()


WRONG_INTENT = {
    "a key that never rotates": (
        "modules/key",
        "main.tf",
        "enable_key_rotation     = true",
        "enable_key_rotation     = false",
    ),
    "training that writes to the archive": (
        "modules/access",
        "main.tf",
        'reads = ["archive"], writes = ["models"]',
        'reads = ["models"], writes = ["archive"]',
    ),
    "a role that another cluster may take": (
        "modules/access",
        "main.tf",
        '        "aws:RequestTag/eks-cluster-arn"            = local.cluster_arn\n',
        "",
    ),
    "an endpoint that lets data out": (
        "modules/network",
        "endpoints.tf",
        '"aws:ResourceAccount" =',
        '"aws:PrincipalAccount" =',
    ),
}


@pytest.mark.parametrize("mutation", WRONG_INTENT)
def test_a_run_fails_on(workspace, mutation):
    folder, path, old, new = WRONG_INTENT[mutation]
    there = workspace(folder)
    there.edit(path, old, new)
    assert "Test assertion failed" in there.said("test")
