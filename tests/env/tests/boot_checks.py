"""What an image makes of user data, and the Node that comes of it."""

import base64
import gzip

from boot import node, userdata
from boot.userdata import Refused

AL2, AL2023 = "amazon-eks-node-1.30-v20240807", "amazon-eks-node-al2023-x86_64-standard-1.35-v1"
BOTTLEROCKET, WINDOWS = "bottlerocket-aws-k8s-1.35-x86_64-v1.50.0-1", "Windows_Server-2022-English"
CALL = """#!/bin/bash -xe
exec > >(tee /var/log/user-data.log|logger -t user-data -s 2>/dev/console) 2>&1
/etc/eks/bootstrap.sh 'c' --apiserver-endpoint 'https://e' --b64-cluster-ca 'Y2E=' \\
--dns-cluster-ip '10.100.0.10' \\
--use-max-pods false \\
--kubelet-extra-args '--node-labels="a/b=c,d=" --register-with-taints="k=v:NoSchedule,u:NoExecute" \\
--max-pods=17 --kube-reserved="cpu=100m,memory=1Gi" --eviction-hard="memory.available<5%"' \\
--local-disks raid0"""
NODE_CONFIG = """# Karpenter Generated NodeConfig
apiVersion: node.eks.aws/v1alpha1
kind: NodeConfig
spec:
  cluster: {apiServerEndpoint: https://e, certificateAuthority: Y2E=, cidr: 10.100.0.0/16, name: c}
  kubelet:
    config:
      maxPods: 17
      registerWithTaints:
      - {effect: NoExecute, key: u}
    flags:
    - --node-labels="a/b=c,d="
"""
SETTINGS = """
[settings.kubernetes]
cluster-name = 'c'
api-server = 'https://e'
cluster-certificate = 'Y2E='
max-pods = 17
[settings.kubernetes.node-labels]
'a/b' = 'c'
[settings.kubernetes.node-taints]
u = [':NoExecute']
k = ['v:NoSchedule', 'v:NoExecute']
"""
POWERSHELL = (
    "<powershell>\n"
    '[string]$EKSBootstrapScriptFile = "$env:ProgramFiles\\Amazon\\EKS\\Start-EKSBootstrap.ps1"\n'
    "& $EKSBootstrapScriptFile -EKSClusterName 'c' -APIServerEndpoint 'https://e' "
    "-Base64ClusterCA 'Y2E=' -KubeletExtraArgs '--node-labels=\"a/b=c\" "
    "--register-with-taints=\"u:NoExecute\" --max-pods=110' -DNSClusterIP '10.100.0.10'\n"
    "</powershell>"
)


def encoded(text):
    return base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


def archive(*parts):
    head = 'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="//"\n\n'
    body = "".join(f"--//\nContent-Type: {kind}\n\n{text}\n" for kind, text in parts)
    return f"{head}{body}--//--\n"


def refused(text, image):
    try:
        userdata.read(encoded(text) if text else "", image)
    except Refused:
        return True
    return False


def same_cluster(kubelet):
    return (kubelet.cluster, kubelet.endpoint, kubelet.ca) == ("c", "https://e", "Y2E=")


def al2_calls_bootstrap(_aws):
    shell = 'text/x-shellscript; charset="us-ascii"'
    mixed = archive((shell, "#!/bin/bash\necho first"), (shell, CALL))
    for text in (CALL, mixed, gzip.compress(mixed.encode())):
        kubelet = userdata.read(encoded(text), AL2)
        assert same_cluster(kubelet) and kubelet.max_pods == 17 and kubelet.local_disks
        assert kubelet.labels == {"a/b": "c", "d": ""}
        assert kubelet.taints == [
            {"key": "k", "value": "v", "effect": "NoSchedule"},
            {"key": "u", "effect": "NoExecute"},
        ]
        assert kubelet.kube_reserved == {"cpu": "100m", "memory": "1Gi"}
        assert kubelet.eviction_hard == {"memory.available": "5%"}


def al2023_reads_node_configs(_aws):
    kind = "application/node.eks.aws"
    own = NODE_CONFIG.replace("maxPods: 17", "maxPods: 5\n      podsPerCore: 3")
    text = archive((kind, own), ("text/x-shellscript", "#!/bin/bash\n"), (kind, NODE_CONFIG))
    kubelet = userdata.read(encoded(text), AL2023)
    assert same_cluster(kubelet) and (kubelet.max_pods, kubelet.pods_per_core) == (17, 3)
    assert kubelet.labels == {"a/b": "c", "d": ""}
    assert kubelet.taints == [{"key": "u", "effect": "NoExecute"}]
    assert same_cluster(userdata.read(encoded(NODE_CONFIG), AL2023))


def bottlerocket_reads_settings(_aws):
    kubelet = userdata.read(encoded(SETTINGS), BOTTLEROCKET)
    assert same_cluster(kubelet) and kubelet.max_pods == 17 and kubelet.labels == {"a/b": "c"}
    assert len(kubelet.taints) == 3 and {"key": "u", "effect": "NoExecute"} in kubelet.taints


def windows_calls_its_script(_aws):
    kubelet = userdata.read(encoded(POWERSHELL), WINDOWS)
    assert same_cluster(kubelet) and kubelet.max_pods == 110 and kubelet.labels == {"a/b": "c"}
    assert kubelet.taints == [{"key": "u", "effect": "NoExecute"}]


def the_wrong_user_data_does_not_boot(_aws):
    assert refused("", AL2) and refused("#!/bin/bash\necho hi", AL2)
    assert refused(CALL, AL2023) and refused(NODE_CONFIG, AL2) and refused(CALL, BOTTLEROCKET)
    assert refused(CALL.replace("--local-disks", "--lokal-disks"), AL2)
    assert refused(NODE_CONFIG.replace("cidr: 10.100.0.0/16, ", ""), AL2023)
    assert refused(CALL.replace("NoExecute", "NoWhere"), AL2)
    assert userdata.read(encoded(CALL), "my-own-image").cluster == "c"
    variables = '#!/bin/bash\nCLUSTER=c\nURL="https://e"\n/etc/eks/bootstrap.sh $CLUSTER '
    kubelet = userdata.read(encoded(f"{variables}--apiserver-endpoint ${{URL}}"), "own")
    assert (kubelet.cluster, kubelet.endpoint) == ("c", "https://e")


def instance(**more):
    hardware = {"vcpus": 2, "memory-mib": 4096, "enis": 3, "ips-per-eni": 6}
    hardware |= {"gpus": [], "neurons": [], "instance-store-gb": 0}
    return {
        "id": "i-1",
        "zone": "us-east-1b",
        "zone-id": "use1-az2",
        "region": "us-east-1",
        "private-dns": "ip-10-10-192-4.ec2.internal",
        "private-ip": "10.10.192.4",
        "image-name": AL2,
        "architecture": "x86_64",
        "instance-type": "t3.medium",
        "volumes": [{"device": "/dev/xvda", "gib": 20}],
        "hardware": hardware,
        **more,
    }


def a_node_is_like_the_real_one(_aws):
    made = node.build(instance(), userdata.Kubelet(max_pods=None))
    assert made["spec"]["providerID"] == "aws:///us-east-1b/i-1"
    assert made["status"]["capacity"]["memory"] == "3943308Ki"
    left = made["status"]["allocatable"]
    assert (left["cpu"], left["pods"], left["memory"]) == ("1930m", "17", "3388300Ki")
    assert left["ephemeral-storage"] == "18242267924"
    bad = userdata.Kubelet(labels={"kubernetes.io/role": "x"})
    try:
        node.build(instance(), bad)
    except Refused:
        bad = None
    assert bad is None
    kubelet = userdata.Kubelet(max_pods=200, pods_per_core=4, system_reserved={"cpu": "70m"})
    left = node.build(instance(), kubelet)["status"]["allocatable"]
    assert (left["cpu"], left["pods"]) == ("1860m", "8")


def devices_are_on_the_nodes_that_have_them(_aws):
    def found(branches=0, kubelet=None, hardware=None, **more):
        whole = instance(**more)
        whole["hardware"] |= hardware or {}
        made = node.build(whole, kubelet or userdata.Kubelet(), branches)
        return made, made["status"]["capacity"]

    gpus = [{"Manufacturer": "NVIDIA", "Count": 4}, {"Manufacturer": "Habana", "Count": 8}]
    _, plain = found(hardware={"gpus": gpus})
    assert (plain["nvidia.com/gpu"], plain["habana.ai/gaudi"]) == ("4", "8")
    assert not any(name.startswith("vpc.amazonaws.com/") for name in plain)
    neurons = [{"Name": "Inferentia2", "Count": 6, "CoreInfo": {"Count": 2}}]
    _, neuron = found(hardware={"neurons": neurons})
    assert neuron["aws.amazon.com/neuron"] == "6"
    assert neuron["aws.amazon.com/neuroncore"] == "12"
    kinds = ("efa", "interface", "efa-only")
    _, efa = found(interfaces=[{"InterfaceType": kind} for kind in kinds])
    assert efa["vpc.amazonaws.com/efa"] == "2"
    trunk, capacity = found(branches=9)
    assert capacity["vpc.amazonaws.com/pod-eni"] == "9"
    assert trunk["status"]["allocatable"]["vpc.amazonaws.com/pod-eni"] == "9"
    assert trunk["metadata"]["labels"]["vpc.amazonaws.com/has-trunk-attached"] == "true"


def huge_pages_are_set_aside(_aws):
    shell = "text/x-shellscript"
    one_gib = "echo 1 > /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages"
    script = f"#!/bin/bash\nsysctl -w vm.nr_hugepages=256\n{one_gib}\n"
    mixed = archive((shell, script), ("application/node.eks.aws", NODE_CONFIG))
    kubelet = userdata.read(encoded(mixed), AL2023)
    assert kubelet.hugepages == {"2Mi": 256, "1Gi": 1}
    tuned = f"{SETTINGS}\n[settings.kernel.sysctl]\n'vm.nr_hugepages' = '64'\n"
    assert userdata.read(encoded(tuned), BOTTLEROCKET).hugepages == {"2Mi": 64}
    script = f"#!/bin/bash\necho 8 | sudo tee /proc/sys/vm/nr_hugepages\n{CALL}"
    assert userdata.read(encoded(script), AL2).hugepages == {"2Mi": 8}
    assert userdata.read(encoded(CALL), AL2).hugepages == {}

    def left(pages):
        made = node.build(instance(), userdata.Kubelet(hugepages=pages))["status"]["allocatable"]
        return made, int(made["memory"].removesuffix("Ki"))

    (without, before), (made, after) = left({}), left({"2Mi": 256, "1Gi": 1})
    assert (without["hugepages-2Mi"], without["hugepages-1Gi"]) == ("0", "0")
    assert (made["hugepages-2Mi"], made["hugepages-1Gi"]) == ("512Mi", "1Gi")
    assert before - after == (512 + 1024) * 1024


CHECKS = [
    al2_calls_bootstrap,
    al2023_reads_node_configs,
    bottlerocket_reads_settings,
    windows_calls_its_script,
    the_wrong_user_data_does_not_boot,
    a_node_is_like_the_real_one,
    devices_are_on_the_nodes_that_have_them,
    huge_pages_are_set_aside,
]
