package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/sets"
	karpv1 "sigs.k8s.io/karpenter/pkg/apis/v1"
	"sigs.k8s.io/karpenter/pkg/cloudprovider"
	"sigs.k8s.io/karpenter/pkg/scheduling"
)

// scenario is the file; Kubernetes objects in it are plain objects.
type scenario struct {
	Name    string `json:"name"`
	Options struct {
		PreferencePolicy string          `json:"preferencePolicy"`
		MinValuesPolicy  string          `json:"minValuesPolicy"`
		FeatureGates     map[string]bool `json:"featureGates"`
		Now              time.Time       `json:"now"`
	} `json:"options"`
	WellKnownLabels []string           `json:"wellKnownLabels"`
	NodePools       []*karpv1.NodePool `json:"nodePools"`
	InstanceTypes   []typeSpec         `json:"instanceTypes"`
	DaemonSetPods   []*corev1.Pod      `json:"daemonSetPods"`
	Nodes           []nodeSpec         `json:"nodes"`
	Pods            []*corev1.Pod      `json:"pods"`
	Objects         []json.RawMessage  `json:"objects"`
}

type requirementSpec struct {
	Key      string                      `json:"key"`
	Operator corev1.NodeSelectorOperator `json:"operator"`
	Values   []string                    `json:"values"`
}

type typeSpec struct {
	Name         string                       `json:"name"`
	Requirements []requirementSpec            `json:"requirements"`
	Capacity     map[string]resource.Quantity `json:"capacity"`
	Overhead     map[string]resource.Quantity `json:"overhead"`
	Offerings    []offeringSpec               `json:"offerings"`
	NodePools    []string                     `json:"nodePools"`
}

type offeringSpec struct {
	Zone                string            `json:"zone"`
	CapacityType        string            `json:"capacityType"`
	Price               float64           `json:"price"`
	Available           *bool             `json:"available"`
	Labels              map[string]string `json:"labels"`
	Requirements        []requirementSpec `json:"requirements"`
	ReservationCapacity int               `json:"reservationCapacity"`
}

type nodeSpec struct {
	Node      *corev1.Node      `json:"node"`
	NodeClaim *karpv1.NodeClaim `json:"nodeClaim"`
	Pods      []*corev1.Pod     `json:"pods"`
}

func readScenario(path string) (*scenario, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s := &scenario{}
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("reading the scenario: %w", err)
	}
	return s, nil
}

func resources(amounts map[string]resource.Quantity) corev1.ResourceList {
	list := corev1.ResourceList{}
	for name, amount := range amounts {
		list[corev1.ResourceName(name)] = amount
	}
	return list
}

func requirementsOf(specs []requirementSpec) []*scheduling.Requirement {
	var list []*scheduling.Requirement
	for _, r := range specs {
		list = append(list, scheduling.NewRequirement(r.Key, r.Operator, r.Values...))
	}
	return list
}

func (o *offeringSpec) build() *cloudprovider.Offering {
	labels := map[string]string{corev1.LabelTopologyZone: o.Zone, karpv1.CapacityTypeLabelKey: o.CapacityType}
	for key, value := range o.Labels {
		labels[key] = value
	}
	requirements := scheduling.NewLabelRequirements(labels)
	requirements.Add(requirementsOf(o.Requirements)...)
	return &cloudprovider.Offering{
		Requirements: requirements, Price: o.Price, Available: o.Available == nil || *o.Available,
		ReservationCapacity: o.ReservationCapacity,
	}
}

// build derives name, zone and capacity-type requirements from the name and the offerings that can be had.
func (t *typeSpec) build() *cloudprovider.InstanceType {
	zones, capacityTypes := sets.New[string](), sets.New[string]()
	var offerings cloudprovider.Offerings
	for i := range t.Offerings {
		offering := t.Offerings[i].build()
		offerings = append(offerings, offering)
		if offering.Available {
			zones.Insert(t.Offerings[i].Zone)
			capacityTypes.Insert(t.Offerings[i].CapacityType)
		}
	}
	requirements := scheduling.NewRequirements(
		scheduling.NewRequirement(corev1.LabelInstanceTypeStable, corev1.NodeSelectorOpIn, t.Name),
		scheduling.NewRequirement(corev1.LabelTopologyZone, corev1.NodeSelectorOpIn, sets.List(zones)...),
		scheduling.NewRequirement(karpv1.CapacityTypeLabelKey, corev1.NodeSelectorOpIn, sets.List(capacityTypes)...),
	)
	requirements.Add(requirementsOf(t.Requirements)...)
	return &cloudprovider.InstanceType{
		Name: t.Name, Requirements: requirements, Offerings: offerings, Capacity: resources(t.Capacity),
		Overhead: &cloudprovider.InstanceTypeOverhead{KubeReserved: resources(t.Overhead)},
	}
}

// typesByPool gives each NodePool its instance types; those without a list of pools belong to all.
func (s *scenario) typesByPool() map[string][]*cloudprovider.InstanceType {
	built := make([]*cloudprovider.InstanceType, len(s.InstanceTypes))
	for i := range s.InstanceTypes {
		built[i] = s.InstanceTypes[i].build()
	}
	byPool := map[string][]*cloudprovider.InstanceType{}
	for _, pool := range s.NodePools {
		list := []*cloudprovider.InstanceType{}
		for i, instanceType := range built {
			allowed := s.InstanceTypes[i].NodePools
			if allowed == nil || sets.New(allowed...).Has(pool.Name) {
				list = append(list, instanceType)
			}
		}
		sort.SliceStable(list, func(i, j int) bool { return list[i].Name < list[j].Name })
		byPool[pool.Name] = list
	}
	return byPool
}
