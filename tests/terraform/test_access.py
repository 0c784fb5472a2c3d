from __future__ import annotations

import json
import runpy
import subprocess
from pathlib import Path

import pytest

iam = runpy.run_path(str(Path(__file__).parent / "iam.py"))
allowed, actions, Request = iam["allowed"], iam["actions"], iam["Request"]

# What each job may: of a bucket r(ead) or r(ead and) w(rite).
RIGHTS = {
    "preprocess": {"raw": "r", "archive": "rw", "models": ""},
    "train": {"raw": "", "archive": "r", "models": "rw"},
    "serving": {"raw": "", "archive": "", "models": "r"},
}
READ = ["s3:GetObject", "s3:ListBucket", "kms:Decrypt"]
WRITE = ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "kms:GenerateDataKey"]
NEVER = [
    "iam:PassRole",
    "kms:ScheduleKeyDeletion",
    "s3:BypassGovernanceRetention",
    "s3:DeleteBucket",
    "s3:DeleteObjectVersion",
    "s3:PutBucketPolicy",
    "s3:PutObjectAcl",
    "sts:AssumeRole",
]
NETWORK = {
    "aws:SecureTransport": "true",
    "s3:TlsVersion": "1.3",
    "s3:x-amz-server-side-encryption": "aws:kms",
    "aws:PrincipalIsAWSService": "false",
}


@pytest.fixture(scope="module")
def state(everything):
    return everything.state()


@pytest.fixture(scope="module")
def place(state):
    """Policies, ARNs and the endpoint of what was carried out."""
    kinds = ("raw", "archive", "models", "logs")
    return {
        "jobs": {job: state[f'module.access.aws_iam_role_policy.job["{job}"]']["policy"] for job in RIGHTS},
        "buckets": {kind: state[f'module.storage.aws_s3_bucket_policy.this["{kind}"]']["policy"] for kind in kinds},
        "keys": {
            kind: state[f'module.storage.module.key["{kind}"].aws_kms_key.this']["arn"]
            for kind in ("raw", "archive", "models")
        },
        "endpoint": state["module.network.aws_vpc_endpoint.s3"]["id"],
    }


def arn(kind, key="a/b"):
    return f"arn:aws:s3:::ctlab-123456789012-{kind}" + (f"/{key}" if key else "")


def target(place, action, kind):
    if action.startswith("kms:"):
        return place["keys"].get(kind, "arn:aws:kms:us-east-1:123456789012:key/none")
    return arn(kind, "" if "Bucket" in action else "a/b")


@pytest.mark.parametrize("job", RIGHTS)
@pytest.mark.parametrize("kind", ["raw", "archive", "models"])
def test_a_job_may_what_it_needs_and_nothing_else(place, job, kind):
    rights = RIGHTS[job][kind]
    wanted = dict.fromkeys(READ, "r" in rights) | dict.fromkeys(WRITE, "w" in rights)
    wanted |= dict.fromkeys(NEVER, False)
    context = NETWORK | {"aws:SourceVpce": place["endpoint"]}
    found = {
        action: allowed(
            Request(action=action, resource=target(place, action, kind), context=context),
            identity=[place["jobs"][job]],
            resource=[place["buckets"][kind]] if action.startswith("s3:") else [],
        )
        for action in wanted
    }
    assert found == wanted


@pytest.mark.parametrize("job", RIGHTS)
def test_a_job_touches_no_logs_and_no_strange_bucket(place, job):
    for resource in (arn("logs"), "arn:aws:s3:::somebody-elses/a"):
        for action in ("s3:GetObject", "s3:PutObject"):
            assert not allowed(Request(action=action, resource=resource), identity=[place["jobs"][job]])


REFUSED = {
    "over plain HTTP": {"aws:SecureTransport": "false"},
    "over old TLS": {"s3:TlsVersion": "1.1"},
    "that names no encryption": {"s3:x-amz-server-side-encryption": None},
    "with another encryption": {"s3:x-amz-server-side-encryption": "AES256"},
    "with another key": {"s3:x-amz-server-side-encryption-aws-kms-key-id": "arn:aws:kms:us-east-1:1:key/theirs"},
    "with a key of the caller's": {"s3:x-amz-server-side-encryption-customer-algorithm": "AES256"},
    "from outside of the network": {"aws:SourceVpce": "vpce-other"},
}


@pytest.mark.parametrize("how", REFUSED)
def test_a_write_is_refused(place, how):
    context = NETWORK | {"aws:SourceVpce": place["endpoint"]}

    def write(context):
        request = Request(action="s3:PutObject", resource=arn("archive"), context=context)
        return allowed(request, identity=[place["jobs"]["preprocess"]], resource=[place["buckets"]["archive"]])

    assert write(context)
    assert not write({key: value for key, value in (context | REFUSED[how]).items() if value is not None})


def test_break_glass_reads_from_anywhere_with_mfa_alone(state, place):
    role = state["module.access.aws_iam_role.break_glass[0]"]
    oncall = {"AWS": "arn:aws:iam::123456789012:user/oncall"}

    def takes(principal, **context):
        request = Request(action="sts:AssumeRole", resource="*", principal=principal, context=context)
        return allowed(request, resource=[role["assume_role_policy"]])

    fresh = {"aws:MultiFactorAuthPresent": "true", "aws:MultiFactorAuthAge": "60"}
    assert takes(oncall, **fresh)
    assert not takes(oncall)
    assert not takes(oncall, **fresh | {"aws:MultiFactorAuthAge": "7200"})
    assert not takes({"AWS": "arn:aws:iam::123456789012:user/other"}, **fresh)
    policy = state["module.access.aws_iam_role_policy.break_glass[0]"]["policy"]
    context = NETWORK | {"aws:PrincipalArn": "arn:aws:iam::123456789012:role/ctlab-break-glass"}
    for action, wanted in (("s3:GetObject", True), ("s3:PutObject", False), ("s3:DeleteObject", False)):
        request = Request(action=action, resource=arn("raw"), context=context)
        assert allowed(request, identity=[policy], resource=[place["buckets"]["raw"]]) is wanted


def test_a_role_is_for_one_service_account_of_one_cluster(state):
    trust = state['module.access.aws_iam_role.job["train"]']["assume_role_policy"]
    right = {
        "aws:SourceAccount": "123456789012",
        "aws:RequestTag/eks-cluster-arn": "arn:aws:eks:us-east-1:123456789012:cluster/ctlab",
        "aws:RequestTag/kubernetes-namespace": "tomoray",
        "aws:RequestTag/kubernetes-service-account": "tomoray-train",
    }

    def takes(context):
        pods = {"Service": "pods.eks.amazonaws.com"}
        return allowed(
            Request(action="sts:AssumeRole", resource="*", principal=pods, context=context), resource=[trust]
        )

    assert takes(right)
    for key in right:
        assert not takes(right | {key: "another"}), key
        assert not takes({other: value for other, value in right.items() if other != key}), key


def test_github_pushes_images_from_main_alone(state):
    trust = state["module.access.aws_iam_role.github[0]"]["assume_role_policy"]
    provider = {"Federated": state["module.access.aws_iam_openid_connect_provider.github[0]"]["arn"]}
    host = "token.actions.githubusercontent.com"

    def takes(subject):
        context = {f"{host}:aud": "sts.amazonaws.com", f"{host}:sub": subject}
        request = Request(action="sts:AssumeRoleWithWebIdentity", resource="*", principal=provider, context=context)
        return allowed(request, resource=[trust])

    assert takes("repo:org/ct:ref:refs/heads/main")
    assert not takes("repo:org/ct:pull_request")
    assert not takes("repo:fork/ct:ref:refs/heads/main")


def test_data_leaves_through_the_endpoint_to_this_account_alone(state):
    policy = state["module.network.aws_vpc_endpoint.s3"]["policy"]

    def passes(action, resource, account):
        request = Request(action=action, resource=resource, context={"aws:ResourceAccount": account})
        return allowed(request, resource=[policy])

    assert passes("s3:PutObject", arn("archive"), "123456789012")
    assert not passes("s3:PutObject", "arn:aws:s3:::stolen/a", "999999999999")
    assert passes("s3:GetObject", "arn:aws:s3:::idc-open-data/a", "999999999999")
    assert not passes("s3:PutObject", "arn:aws:s3:::idc-open-data/a", "999999999999")


def test_every_action_exists_and_none_has_a_wildcard(everything, state):
    policies = {
        address: values["policy"]
        for address, values in state.items()
        if ".aws_iam_role_policy." in f".{address}" and "policy" in values
    }
    assert len(policies) >= 9
    named = sorted(set().union(*(actions(policy) for policy in policies.values())))
    assert not [action for action in named if "*" in action]
    code = (
        "import json, sys\nfrom policy_sentry.querying.actions import get_action_data\n"
        "print(json.dumps([a for a in json.load(sys.stdin) if not get_action_data(*a.split(':'))]))"
    )
    python = everything.tools / "bin" / "python"
    done = subprocess.run(
        [python, "-c", code], input=json.dumps(named), capture_output=True, text=True, check=True, timeout=120
    )
    assert json.loads(done.stdout) == []
