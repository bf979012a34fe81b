"""Starts an AWS of its own for the checks, and holds what they all use."""

import base64
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

HERE = pathlib.Path(__file__).resolve().parent.parent
REGION = "us-east-1"
CLUSTER = "weasel-eks"
IMAGE = "ami-09c00c2e93ce7bd23"
DISCOVERY = [{"Name": "tag:karpenter.sh/discovery", "Values": [CLUSTER]}]


class Aws:
    """A running local AWS and clients of it."""

    def __init__(self, *options):
        self.folder = tempfile.TemporaryDirectory()
        state = pathlib.Path(self.folder.name, "state.json")
        command = [sys.executable, "-m", "aws", "--state-file", str(state), *options]
        self.process = subprocess.Popen(command, cwd=HERE, stdout=subprocess.DEVNULL)
        while not state.exists():
            if self.process.poll() is not None:
                raise RuntimeError("the local AWS did not start")
            time.sleep(0.05)
        self._connect(json.loads(state.read_text()))

    @classmethod
    def at(cls, env):
        """The AWS of a world that is up, by its environment."""
        self = cls.__new__(cls)
        state = {
            "endpoint": env["AWS_ENDPOINT_URL"],
            "subnets": env["WORLD_SUBNETS"].split(","),
            "security-group": env["WORLD_SECURITY_GROUP"],
        }
        self._connect(state)
        return self

    def _connect(self, state):
        self.state, self.endpoint = state, state["endpoint"]
        session = boto3.session.Session("test", "test", region_name=REGION)
        quick = Config(retries={"total_max_attempts": 1}, parameter_validation=False)
        names = ("ec2", "iam", "ssm", "eks", "sqs", "sts", "pricing", "arc-zonal-shift")
        for name in names:
            client = session.client(name, endpoint_url=self.endpoint, config=quick)
            setattr(self, name.replace("-", "_"), client)
        self.count = 0
        self.iam.create_instance_profile(InstanceProfileName="profile")
        self.iam.add_role_to_instance_profile(
            InstanceProfileName="profile", RoleName=f"KarpenterNodeRole-{CLUSTER}"
        )

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()

    def admin(self, path, body=None, method=None):
        data = None if body is None else json.dumps(body).encode()
        method = method or ("GET" if body is None else "POST")
        request = urllib.request.Request(f"{self.endpoint}/_local/{path}", data, method=method)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def template(self, **data):
        """A launch template as the controller makes it; its name."""
        self.count += 1
        name = f"template-{self.count}"
        content = {
            "ImageId": IMAGE,
            "UserData": base64.b64encode(b"#!/bin/bash\n").decode(),
            "IamInstanceProfile": {"Name": "profile"},
            "SecurityGroupIds": [self.state["security-group"]],
            "EbsOptimized": True,
            "Monitoring": {"Enabled": True},
            "BlockDeviceMappings": [
                {
                    "DeviceName": "/dev/xvda",
                    "Ebs": {
                        "VolumeSize": 20,
                        "VolumeType": "gp3",
                        "Encrypted": True,
                        "DeleteOnTermination": True,
                    },
                }
            ],
            "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
            **data,
        }
        self.ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=content)
        return name

    def fleet(self, template, types, kind="spot", count=1, subnets=None, strategy=None, **more):
        """CreateFleet over every type and subnet, priorities in the order given."""
        subnets = subnets or self.state["subnets"]
        overrides = [
            {"InstanceType": t, "SubnetId": s, "Priority": float(rank)}
            for rank, t in enumerate(types)
            for s in subnets
        ]
        tags = [
            {"Key": "karpenter.sh/nodepool", "Value": "default"},
            {"Key": "karpenter.k8s.aws/ec2nodeclass", "Value": "default"},
        ]
        options = "SpotOptions" if kind == "spot" else "OnDemandOptions"
        default = "price-capacity-optimized" if kind == "spot" else "lowest-price"
        spec = {"LaunchTemplateName": template, "Version": "$Latest"}
        tagged = ("instance", "volume", "fleet", "network-interface")
        return self.ec2.create_fleet(
            **{
                "Type": "instant",
                options: {"AllocationStrategy": strategy or default},
                "LaunchTemplateConfigs": [
                    {"LaunchTemplateSpecification": spec, "Overrides": overrides}
                ],
                "TargetCapacitySpecification": {
                    "DefaultTargetCapacityType": kind,
                    "TotalTargetCapacity": count,
                },
                "TagSpecifications": [{"ResourceType": r, "Tags": tags} for r in tagged],
                **more,
            }
        )

    def instance(self, iid):
        found = self.ec2.describe_instances(InstanceIds=[iid])
        return found["Reservations"][0]["Instances"][0]


def ids(fleet):
    return [i for group in fleet["Instances"] for i in group["InstanceIds"]]


def error_codes(fleet):
    return sorted({e["ErrorCode"] for e in fleet["Errors"]})


def code(call, *args, **kwargs):
    """The code of the error that a call ends in."""
    try:
        call(*args, **kwargs)
    except ClientError as error:
        return error.response["Error"]["Code"]
    return "no error"
