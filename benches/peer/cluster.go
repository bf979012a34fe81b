package main

import (
	"context"
	"fmt"
	"time"

	"github.com/awslabs/operatorpkg/object"
	"github.com/awslabs/operatorpkg/status"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/utils/clock"
	fakeclient "sigs.k8s.io/controller-runtime/pkg/client/fake"
	karpv1 "sigs.k8s.io/karpenter/pkg/apis/v1"
	"sigs.k8s.io/karpenter/pkg/cloudprovider"
	"sigs.k8s.io/karpenter/pkg/cloudprovider/fake"
	"sigs.k8s.io/karpenter/pkg/controllers/provisioning"
	"sigs.k8s.io/karpenter/pkg/controllers/state"
	"sigs.k8s.io/karpenter/pkg/events"
	"sigs.k8s.io/karpenter/pkg/operator/injection"
	"sigs.k8s.io/karpenter/pkg/operator/options"
)

const reservationID = "karpenter.k8s.aws/capacity-reservation-id"

// Label keys that the library knows before any scenario adds its own.
var libraryLabels = karpv1.WellKnownLabels.Clone()

// muted drops events.
type muted struct{}

func (muted) Event(runtime.Object, string, string, string)          {}
func (muted) Eventf(runtime.Object, string, string, string, ...any) {}
func (muted) AnnotatedEventf(runtime.Object, map[string]string, string, string, string, ...any) {
}

// cluster is a scenario as the library sees one.
type cluster struct {
	ctx         context.Context
	reader      *reader
	state       *state.Cluster
	provisioner *provisioning.Provisioner
	cloud       *fake.CloudProvider
	options     *options.Options
}

func optionsOf(s *scenario, workers int) (*options.Options, error) {
	o := &options.Options{
		CPURequests: int64(workers) * 1000, BatchMaxDuration: 10 * time.Second, BatchIdleDuration: time.Second,
		PreferencePolicy: options.PreferencePolicyRespect, MinValuesPolicy: options.MinValuesPolicyStrict,
		IgnoreDRARequests: true, FeatureGates: options.DefaultFeatureGates(),
	}
	if s.Options.PreferencePolicy != "" {
		o.PreferencePolicy = options.PreferencePolicy(s.Options.PreferencePolicy)
	}
	if s.Options.MinValuesPolicy != "" {
		o.MinValuesPolicy = options.MinValuesPolicy(s.Options.MinValuesPolicy)
	}
	for gate, on := range s.Options.FeatureGates {
		switch gate {
		case "ReservedCapacity":
			o.FeatureGates.ReservedCapacity = on
		case "SpotToSpotConsolidation":
			o.FeatureGates.SpotToSpotConsolidation = on
		default:
			if on {
				return nil, fmt.Errorf("options.featureGates.%s: this program does not cover it", gate)
			}
		}
	}
	return o, nil
}

func newCluster(s *scenario, workers int) (*cluster, error) {
	o, err := optionsOf(s, workers)
	if err != nil {
		return nil, err
	}
	karpv1.WellKnownLabels = libraryLabels.Union(sets.New(s.WellKnownLabels...))
	karpv1.NormalizedLabels["topology.ebs.csi.aws.com/zone"] = corev1.LabelTopologyZone
	cloudprovider.ReservationIDLabel = reservationID
	cloudprovider.ReservedCapacityLabels.Insert(reservationID)

	c := &cluster{reader: newReader(fakeclient.NewFakeClient()), options: o}
	c.ctx = options.ToContext(injection.WithControllerName(context.Background(), "provisioner"), o)
	cloud := fake.NewCloudProvider()
	c.cloud = cloud
	c.addPools(s, cloud)
	cloud.InstanceTypesForNodePool = s.typesByPool()
	for i, pod := range s.DaemonSetPods {
		name := fmt.Sprintf("daemon-%d", i)
		c.reader.daemonSets.put(name, &appsv1.DaemonSet{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: pod.Namespace, UID: types.UID(name)},
			Spec: appsv1.DaemonSetSpec{Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels, Annotations: pod.Annotations}, Spec: pod.Spec,
			}},
		})
	}
	for i, object := range s.Objects {
		if err := c.reader.addObject(object); err != nil {
			return nil, fmt.Errorf("objects[%d]: %w", i, err)
		}
	}
	clk := clock.RealClock{}
	c.state = state.NewCluster(clk, c.reader, cloud)
	if err := c.addNodes(s); err != nil {
		return nil, err
	}
	for _, pod := range s.Pods {
		c.reader.addPod(pod)
	}
	c.state.SetSynced(true)
	c.provisioner = provisioning.NewProvisioner(c.reader, events.NewRecorder(muted{}), cloud, c.state, clk, nil, nil)
	return c, nil
}

// addPools makes the pools ready and hands them to a node class that the library's fake provider serves.
func (c *cluster) addPools(s *scenario, cloud *fake.CloudProvider) {
	class := cloud.GetSupportedNodeClasses()[0]
	for _, pool := range s.NodePools {
		pool.Spec.Template.Spec.NodeClassRef = &karpv1.NodeClassReference{
			Group: object.GVK(class).Group, Kind: object.GVK(class).Kind, Name: "default",
		}
		if pool.UID == "" {
			pool.UID = types.UID("pool-" + pool.Name)
		}
		if pool.StatusConditions().Get(status.ConditionReady).IsUnknown() {
			for _, kind := range []string{karpv1.ConditionTypeValidationSucceeded, karpv1.ConditionTypeNodeClassReady} {
				pool.StatusConditions().SetTrue(kind)
			}
		}
		c.reader.pools.put(pool.Name, pool)
	}
}

func (c *cluster) addNodes(s *scenario) error {
	for _, entry := range s.Nodes {
		if entry.Node == nil {
			continue
		}
		for _, pod := range entry.Pods {
			pod.Spec.NodeName = entry.Node.Name
			c.reader.addPod(pod)
		}
		c.reader.nodes.put(entry.Node.Name, entry.Node)
	}
	for _, entry := range s.Nodes {
		claim := entry.NodeClaim
		if claim == nil && entry.Node != nil && entry.Node.Labels[karpv1.NodePoolLabelKey] != "" {
			claim = claimBehind(entry.Node, c.reader.pools.items[entry.Node.Labels[karpv1.NodePoolLabelKey]])
		}
		if claim != nil {
			c.reader.claims.put(claim.Name, claim)
			c.state.UpdateNodeClaim(claim)
		}
		if entry.Node == nil {
			continue
		}
		if err := c.state.UpdateNode(c.ctx, entry.Node); err != nil {
			return err
		}
		for _, pod := range entry.Pods {
			if err := c.state.UpdatePod(c.ctx, pod); err != nil {
				return err
			}
		}
	}
	return nil
}

// claimBehind is the NodeClaim of a settled node whose scenario gives none.
func claimBehind(node *corev1.Node, pool *karpv1.NodePool) *karpv1.NodeClaim {
	claim := &karpv1.NodeClaim{
		ObjectMeta: metav1.ObjectMeta{
			Name: node.Name, UID: types.UID("claim-" + node.Name), Labels: node.Labels, Annotations: node.Annotations,
			CreationTimestamp: metav1.NewTime(time.Now().Add(-24 * time.Hour)),
		},
		Spec: karpv1.NodeClaimSpec{Taints: node.Spec.Taints},
		Status: karpv1.NodeClaimStatus{
			NodeName: node.Name, ProviderID: node.Spec.ProviderID,
			Capacity: node.Status.Capacity, Allocatable: node.Status.Allocatable,
			LastPodEventTime: metav1.NewTime(time.Now().Add(-12 * time.Hour)),
		},
	}
	if pool != nil {
		claim.Spec.NodeClassRef = pool.Spec.Template.Spec.NodeClassRef
		claim.Spec.ExpireAfter = pool.Spec.Template.Spec.ExpireAfter
	}
	for _, kind := range []string{
		karpv1.ConditionTypeLaunched, karpv1.ConditionTypeRegistered, karpv1.ConditionTypeInitialized, karpv1.ConditionTypeConsolidatable,
	} {
		claim.StatusConditions().SetTrue(kind)
	}
	return claim
}
