"""The documents that Terraform would send to S3, put on a real S3 server by boto3, and shown to hold there."""

from __future__ import annotations

import json
import os
import subprocess
import uuid

import pytest
from botocore.exceptions import ClientError


@pytest.fixture(scope="module")
def documents(everything):
    """Resources of the buckets by type and kind."""
    found: dict[str, dict[str, dict]] = {}
    for address, values in everything.state().items():
        if address.startswith("module.storage.aws_s3_bucket") and ".this[" in address:
            kind = address.partition('["')[2].removesuffix('"]')
            found.setdefault(address.split(".")[2], {})[kind] = values
    return found


@pytest.fixture
def bucket(s3, documents):
    """`bucket(kind, "RefuseOtherKeys")`: a new bucket with the statements of this kind's policy that are named."""
    if s3.kind != "rgw":
        pytest.skip("moto enforces no bucket policies: install ceph-mon ceph-osd ceph-mgr radosgw ceph-common")

    def make(kind, *statements):
        name = f"test-{uuid.uuid4().hex[:12]}"
        s3.client().create_bucket(Bucket=name)
        if statements:
            policy = json.loads(documents["aws_s3_bucket_policy"][kind]["policy"])
            policy["Statement"] = [each for each in policy["Statement"] if each["Sid"] in statements]
            assert len(policy["Statement"]) == len(statements)
            text = json.dumps(policy).replace(f"ctlab-123456789012-{kind}", name)
            for module in documents["aws_s3_bucket_server_side_encryption_configuration"][kind]["rule"]:
                for default in module["apply_server_side_encryption_by_default"]:
                    text = text.replace(default["kms_master_key_id"] or "-", "a-key")
            s3.client().put_bucket_policy(Bucket=name, Policy=text)
        return name

    return make


def refusal(call, **arguments):
    """The code of the error that a call ends with, or None."""
    try:
        call(**arguments)
    except ClientError as error:
        return error.response["Error"]["Code"]
    return None


def test_plain_http_is_refused(s3, bucket):
    name, client = bucket("archive", "RefusePlainHttp"), s3.client()
    assert s3.endpoint.startswith("http://")
    assert refusal(client.put_object, Bucket=name, Key="a", Body=b"x") == "AccessDenied"
    assert refusal(client.list_objects_v2, Bucket=name) == "AccessDenied"


def test_other_encryption_and_other_keys_are_refused(s3, bucket):
    name, client = bucket("archive", "RefuseOtherEncryption", "RefuseOtherKeys"), s3.client()
    put = {"Bucket": name, "Key": "a", "Body": b"x"}
    assert refusal(client.put_object, **put) is None, "the bucket's own encryption"
    assert refusal(client.put_object, **put, ServerSideEncryption="aws:kms", SSEKMSKeyId="a-key") is None
    assert refusal(client.put_object, **put, ServerSideEncryption="AES256") == "AccessDenied"
    others = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "other-key"}
    assert refusal(client.put_object, **put, **others) == "AccessDenied"
    assert client.head_object(Bucket=name, Key="a")["ServerSideEncryption"] == "aws:kms"


def test_unencrypted_writes_are_refused_where_that_is_asked_for(s3, bucket):
    name, client = bucket("archive", "RefuseUnencrypted"), s3.client()
    put = {"Bucket": name, "Key": "a", "Body": b"x"}
    assert refusal(client.put_object, **put) == "AccessDenied"
    assert refusal(client.put_object, **put, ServerSideEncryption="aws:kms", SSEKMSKeyId="a-key") is None


def test_nothing_can_be_made_public(s3, bucket, documents):
    name, client = bucket("raw"), s3.client()
    block = documents["aws_s3_bucket_public_access_block"]["raw"]
    flags = {
        key.title().replace("_", ""): block[key] for key in block if key.startswith(("block", "ignore", "restrict"))
    }
    client.put_public_access_block(Bucket=name, PublicAccessBlockConfiguration=flags)
    assert refusal(client.put_bucket_acl, Bucket=name, ACL="public-read") == "AccessDenied"
    everybody = (
        '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", '
        f'"Resource": "arn:aws:s3:::{name}/*"}}]}}'
    )
    assert refusal(client.put_bucket_policy, Bucket=name, Policy=everybody) == "AccessDenied"


def test_locked_versions_cannot_be_removed(s3, bucket, documents):
    bucket("raw")  # skips without a real server
    name, client = f"test-{uuid.uuid4().hex[:12]}", s3.client()
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    (rule,) = documents["aws_s3_bucket_object_lock_configuration"]["raw"]["rule"]
    (retention,) = rule["default_retention"]
    lock = {"Mode": retention["mode"], "Days": retention["days"]}
    configuration = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": lock}}
    client.put_object_lock_configuration(Bucket=name, ObjectLockConfiguration=configuration)
    version = client.put_object(Bucket=name, Key="a", Body=b"x")["VersionId"]
    assert refusal(client.delete_object, Bucket=name, Key="a", VersionId=version) == "AccessDenied"
    client.delete_object(Bucket=name, Key="a")
    assert client.get_object(Bucket=name, Key="a", VersionId=version)["Body"].read() == b"x"


def test_unfinished_uploads_and_old_versions_end_and_current_ones_stay(s3, bucket, documents):
    name, client = bucket("archive"), s3.client()
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    rules = [_as_boto3(rule) for rule in documents["aws_s3_bucket_lifecycle_configuration"]["archive"]["rule"]]
    kept = [rule for rule in rules if "Transitions" not in rule]  # this server has no cheaper class
    client.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": kept})
    for body in (b"old", b"new"):
        client.put_object(Bucket=name, Key="a", Body=body)
    client.create_multipart_upload(Bucket=name, Key="b")

    def there():
        uploads = client.list_multipart_uploads(Bucket=name).get("Uploads", [])
        return len(uploads), len(client.list_object_versions(Bucket=name)["Versions"])

    _age(s3, name)
    assert there() == (1, 2), "nothing is a week old"
    for _ in range(20):
        _age(s3, name, "--rgw-lc-debug-interval", "1")  # a second for a day
        if there() == (0, 1):
            break
    assert there() == (0, 1)
    assert client.get_object(Bucket=name, Key="a")["Body"].read() == b"new"


def _as_boto3(rule):
    """A rule as S3 itself takes it, from Terraform's."""
    made = {"ID": rule["id"], "Status": rule["status"], "Filter": {"Prefix": ""}}
    for each in rule["abort_incomplete_multipart_upload"]:
        made["AbortIncompleteMultipartUpload"] = {"DaysAfterInitiation": each["days_after_initiation"]}
    for each in rule["noncurrent_version_expiration"]:
        made["NoncurrentVersionExpiration"] = {"NoncurrentDays": each["noncurrent_days"]}
    for each in rule["transition"]:
        made["Transitions"] = [{"Days": each["days"], "StorageClass": each["storage_class"]}]
    return made


def _age(s3, name, *flags):
    """Let the server do its daily round of a bucket now."""
    command = ["radosgw-admin", "lc", "process", "--bucket", name, *flags]
    env = {**os.environ, "CEPH_ARGS": f"-c {s3.folder}/ceph.conf"}
    subprocess.run(command, env=env, capture_output=True, check=True, timeout=120)
