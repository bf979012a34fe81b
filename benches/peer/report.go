package main

import (
	"math"
	"sort"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/karpenter/pkg/cloudprovider"
	"sigs.k8s.io/karpenter/pkg/controllers/provisioning/scheduling"
)

// result has the fields of `karpenter simulate --output json`, and what the runs took.
type result struct {
	NodeClaims    []claimReport `json:"nodeClaims"`
	ExistingNodes []nodeReport  `json:"existingNodes"`
	Unschedulable []podReport   `json:"unschedulable"`
	TotalPrice    float64       `json:"totalPrice"`
	SolveSeconds  float64       `json:"solveSeconds"`
	PeakRSSBytes  uint64        `json:"peakRssBytes"`
	Runs          []runSummary  `json:"runs"`
}

type runSummary struct {
	SetupSeconds  float64 `json:"setupSeconds"`
	LoopSeconds   float64 `json:"loopSeconds"`
	CPUSeconds    float64 `json:"cpuSeconds"`
	PeakRSSBytes  uint64  `json:"peakRssBytes"`
	TotalPrice    float64 `json:"totalPrice"`
	NodeClaims    int     `json:"nodeClaims"`
	Unschedulable int     `json:"unschedulable"`
	TimedOut      bool    `json:"timedOut"`
}

type claimReport struct {
	NodePool      string              `json:"nodePool"`
	Requirements  []requirementReport `json:"requirements"`
	Taints        []corev1.Taint      `json:"taints"`
	Requests      corev1.ResourceList `json:"requests"`
	Pods          []string            `json:"pods"`
	InstanceTypes []string            `json:"instanceTypes"`
	Cheapest      *launch             `json:"cheapest"`
}

type requirementReport struct {
	Key       string   `json:"key"`
	Operator  string   `json:"operator"`
	Values    []string `json:"values"`
	MinValues *int     `json:"minValues,omitempty"`
}

type launch struct {
	InstanceType string  `json:"instanceType"`
	Zone         string  `json:"zone"`
	CapacityType string  `json:"capacityType"`
	Price        float64 `json:"price"`
}

type nodeReport struct {
	Name string   `json:"name"`
	Pods []string `json:"pods"`
}

type podReport struct {
	Pod   string `json:"pod"`
	Error string `json:"error"`
}

func (r *result) better(than *result) bool {
	if len(r.Unschedulable) != len(than.Unschedulable) {
		return len(r.Unschedulable) < len(than.Unschedulable)
	}
	return r.TotalPrice <= than.TotalPrice
}

func describe(outcome scheduling.Results, failures map[*corev1.Pod]error) *result {
	r := &result{NodeClaims: []claimReport{}, ExistingNodes: []nodeReport{}, Unschedulable: []podReport{}}
	for _, claim := range outcome.NewNodeClaims {
		report := claimReportOf(claim)
		if report.Cheapest != nil {
			r.TotalPrice += report.Cheapest.Price
		}
		r.NodeClaims = append(r.NodeClaims, report)
	}
	r.TotalPrice = math.Round(r.TotalPrice*1e9) / 1e9
	for _, node := range outcome.ExistingNodes {
		if len(node.Pods) > 0 {
			r.ExistingNodes = append(r.ExistingNodes, nodeReport{Name: node.Name(), Pods: names(node.Pods)})
		}
	}
	sort.Slice(r.ExistingNodes, func(i, j int) bool { return r.ExistingNodes[i].Name < r.ExistingNodes[j].Name })
	for pod, err := range failures {
		r.Unschedulable = append(r.Unschedulable, podReport{Pod: name(pod), Error: err.Error()})
	}
	sort.Slice(r.Unschedulable, func(i, j int) bool { return r.Unschedulable[i].Pod < r.Unschedulable[j].Pod })
	return r
}

func claimReportOf(claim *scheduling.NodeClaim) claimReport {
	report := claimReport{
		NodePool: claim.NodePoolName, Taints: claim.Spec.Taints, Requests: claim.Spec.Resources.Requests,
		Pods: names(claim.Pods), InstanceTypes: []string{}, Requirements: []requirementReport{},
	}
	for _, r := range claim.Requirements.NodeSelectorRequirements() {
		report.Requirements = append(report.Requirements, requirementReport{
			Key: r.Key, Operator: string(r.Operator), Values: append([]string{}, r.Values...), MinValues: r.MinValues,
		})
	}
	sort.SliceStable(report.Requirements, func(i, j int) bool { return report.Requirements[i].Key < report.Requirements[j].Key })
	for _, instanceType := range cloudprovider.InstanceTypes(claim.InstanceTypeOptions).OrderByPrice(claim.Requirements) {
		report.InstanceTypes = append(report.InstanceTypes, instanceType.Name)
		offerings := instanceType.Offerings.Available().Compatible(claim.Requirements)
		if len(offerings) == 0 {
			continue
		}
		if o := offerings.Cheapest(); report.Cheapest == nil || o.Price < report.Cheapest.Price {
			report.Cheapest = &launch{
				InstanceType: instanceType.Name, Zone: o.Requirements.Get(corev1.LabelTopologyZone).Any(),
				CapacityType: o.CapacityType(), Price: o.Price,
			}
		}
	}
	return report
}

func name(pod *corev1.Pod) string { return pod.Namespace + "/" + pod.Name }

func names(pods []*corev1.Pod) []string {
	list := make([]string, len(pods))
	for i, pod := range pods {
		list[i] = name(pod)
	}
	return list
}
