//! What to do, in which order.

use std::fmt::Write as _;

use super::group::{Group, Kind};
use super::shell::quoted;

/// Commands that save the answers which `-f` reads.
pub fn saving(cluster: Option<&str>) -> String {
    let cluster = cluster.unwrap_or("CLUSTER");
    format!(
        r#"# Nothing is asked of AWS here: these commands save its answers, for a user that may describe Auto Scaling
# groups, launch templates and node groups. With --from-aws karpenter migrate runs them itself.
mkdir -p aws-answers
aws autoscaling describe-auto-scaling-groups --output json > aws-answers/groups.json
aws autoscaling describe-launch-configurations --output json > aws-answers/launch-configurations.json
for name in $(aws eks list-nodegroups --cluster-name {cluster} --query 'nodegroups[]' --output text); do
  aws eks describe-nodegroup --cluster-name {cluster} --nodegroup-name "$name" --output json > "aws-answers/nodegroup-$name.json"
done
for id in $(aws ec2 describe-launch-templates --query 'LaunchTemplates[].LaunchTemplateId' --output text); do
  aws ec2 describe-launch-template-versions --launch-template-id "$id" --output json > "aws-answers/template-$id.json"
done
karpenter migrate --from-cluster-autoscaler --cluster-name {cluster} -f aws-answers > nodepools.yaml
"#
    )
}

/// The order of steps for these groups.
pub fn order(groups: &[Group], cluster: Option<&str>) -> String {
    let cluster = cluster.unwrap_or("CLUSTER");
    let mut text = String::from(
        "\nSteps, in this order:
1. Read the notes above. Keep one group, with its minimum size, for the controller and kube-system.
2. Create the controller's role, and let the node roles join the cluster (access entry or aws-auth).
3. Install the charts, with an affinity of the controller to the group that stays.
4. karpenter validate -f nodepools.yaml && kubectl apply -f nodepools.yaml
   kubectl get ec2nodeclasses,nodepools   # until all are Ready
5. kubectl -n kube-system scale deployment cluster-autoscaler --replicas=0
6. For each group, one after the other: let it launch nothing more, then move its pods.\n",
    );
    for group in groups {
        for source in group.sources.iter().map(|source| quoted(source)) {
            let lines = match group.kind {
                // All nodes are cordoned before the first one is drained, or its pods would move to
                // the others.
                Kind::NodeGroup => format!(
                    "   aws eks update-nodegroup-config --cluster-name {cluster} --nodegroup-name {source} --scaling-config minSize=0
   kubectl cordon -l eks.amazonaws.com/nodegroup={source}
   kubectl drain -l eks.amazonaws.com/nodegroup={source} --ignore-daemonsets --delete-emptydir-data
   aws eks update-nodegroup-config --cluster-name {cluster} --nodegroup-name {source} --scaling-config minSize=0,desiredSize=0"
                ),
                Kind::AutoScalingGroup => format!(
                    "   aws autoscaling update-auto-scaling-group --auto-scaling-group-name {source} --min-size 0
   aws autoscaling suspend-processes --auto-scaling-group-name {source} --scaling-processes Launch
   nodes=$(for id in $(aws autoscaling describe-auto-scaling-groups --auto-scaling-group-names {source} --query 'AutoScalingGroups[].Instances[].InstanceId' --output text); do
     kubectl get nodes -o json | jq -r --arg id \"$id\" '.items[] | select(.spec.providerID // \"\" | endswith($id)) | .metadata.name'
   done)
   kubectl cordon $nodes   # all of them first: no pod moves to a node that is drained next
   for node in $nodes; do kubectl drain --ignore-daemonsets --delete-emptydir-data \"$node\"; done
   aws autoscaling update-auto-scaling-group --auto-scaling-group-name {source} --desired-capacity 0"
                ),
            };
            let _ = writeln!(text, "{lines}");
        }
    }
    text.push_str(
        "7. Once all pods run, delete the groups that are empty, and Cluster Autoscaler.
To go back: scale Cluster Autoscaler and the groups up again, then delete the NodePools; their nodes are drained and removed.\n",
    );
    text
}
