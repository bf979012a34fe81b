package main

import (
	"context"
	"fmt"
	"maps"
	"math"
	"time"

	"github.com/awslabs/operatorpkg/option"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	karpv1 "sigs.k8s.io/karpenter/pkg/apis/v1"
	"sigs.k8s.io/karpenter/pkg/cloudprovider"
	"sigs.k8s.io/karpenter/pkg/controllers/disruption"
	"sigs.k8s.io/karpenter/pkg/controllers/provisioning/scheduling"
	"sigs.k8s.io/karpenter/pkg/events"
)

// consolidation is what the library makes of a cluster without waiting pods.
type consolidation struct {
	Nodes           int     `json:"nodes"`
	Candidates      int     `json:"candidates"`
	Simulations     int     `json:"simulations"`
	SimulateSeconds float64 `json:"simulateSeconds"`
	Rest            *rest   `json:"rest,omitempty"`
}

// rest is the cluster after as many passes as it took until none found anything.
type rest struct {
	PriceBefore float64 `json:"priceBefore"`
	PriceAfter  float64 `json:"priceAfter"`
	NodesAfter  int     `json:"nodesAfter"`
	Passes      int     `json:"passes"`
	Evictions   int     `json:"evictions"`
	Seconds     float64 `json:"seconds"`
	AtRest      bool    `json:"atRest"`
}

// accepting skips the wait of 15 s and the second simulation that precede the execution of a command.
type accepting struct{}

func (accepting) Validate(_ context.Context, c disruption.Command, _ time.Duration) (disruption.Command, error) {
	return c, nil
}

// pass is one look at the cluster by the methods in their order.
type pass struct {
	cluster  *cluster
	recorder events.Recorder
	queue    *disruption.Queue
	methods  []disruption.Method
}

func newPass(s *scenario, workers int) (*pass, error) {
	c, err := newCluster(s, workers)
	if err != nil {
		return nil, err
	}
	p := &pass{cluster: c, recorder: events.NewRecorder(muted{})}
	clk := clock.RealClock{}
	p.queue = disruption.NewQueue(c.reader, p.recorder, c.state, clk, c.provisioner)
	base := disruption.MakeConsolidation(clk, c.state, c.reader, c.provisioner, c.cloud, p.recorder, p.queue)
	accept := option.Function[disruption.MethodOptions](disruption.WithValidator(accepting{}))
	p.methods = []disruption.Method{
		disruption.NewEmptiness(base, accept), disruption.NewMultiNodeConsolidation(base, accept), disruption.NewSingleNodeConsolidation(base, accept),
	}
	return p, nil
}

func (p *pass) candidates(m disruption.Method) ([]*disruption.Candidate, error) {
	c := p.cluster
	return disruption.GetCandidates(c.ctx, c.state, c.reader, p.recorder, clock.RealClock{}, c.cloud, m.ShouldDisrupt, m.Class(), p.queue)
}

// commands are those of the first method that finds any.
func (p *pass) commands(s *scenario) ([]disruption.Command, error) {
	for _, m := range p.methods {
		found, err := p.candidates(m)
		if err != nil {
			return nil, err
		}
		budget := map[string]int{}
		for _, pool := range s.NodePools {
			budget[pool.Name] = len(s.Nodes)
		}
		commands, err := m.ComputeCommands(p.cluster.ctx, budget, found...)
		if err != nil {
			return nil, err
		}
		var real []disruption.Command
		for _, c := range commands {
			if len(c.Candidates) > 0 {
				real = append(real, c)
			}
		}
		if len(real) > 0 {
			return real, nil
		}
	}
	return nil, nil
}

// commandReport has the fields of a command of `karpenter simulate --disrupt --output json` that a replay needs.
type commandReport struct {
	Candidates   []string      `json:"candidates"`
	Replacements []claimReport `json:"replacements"`
}

// next is what the first method that finds anything would do.
func next(s *scenario, workers int) (map[string][]commandReport, error) {
	p, err := newPass(s, workers)
	if err != nil {
		return nil, err
	}
	commands, err := p.commands(s)
	if err != nil {
		return nil, err
	}
	reports := []commandReport{}
	for i := range commands {
		report := commandReport{Candidates: []string{}, Replacements: []claimReport{}}
		for _, candidate := range commands[i].Candidates {
			report.Candidates = append(report.Candidates, candidate.Name())
		}
		for _, replacement := range commands[i].Replacements {
			report.Replacements = append(report.Replacements, claimReportOf(replacement.NodeClaim))
		}
		reports = append(reports, report)
	}
	return map[string][]commandReport{"commands": reports}, nil
}

// consolidate times simulations of single candidates, spread over all of them, and with a limit carries commands out until
// no method finds any or the time is over.
func consolidate(s *scenario, simulations int, limit time.Duration, workers int) (*consolidation, error) {
	p, err := newPass(s, workers)
	if err != nil {
		return nil, err
	}
	found, err := p.candidates(p.methods[1])
	if err != nil {
		return nil, err
	}
	out := &consolidation{Nodes: len(s.Nodes), Candidates: len(found), Simulations: min(simulations, len(found))}
	start := time.Now()
	for i := range out.Simulations {
		_, err := disruption.SimulateScheduling(p.cluster.ctx, p.cluster.reader, p.cluster.state, p.cluster.provisioner, clock.RealClock{}, p.recorder,
			[]scheduling.Options{scheduling.IsConsolidationSimulation}, disruption.SimulationOptions{}, found[i*len(found)/out.Simulations])
		if err != nil {
			return nil, err
		}
	}
	out.SimulateSeconds = time.Since(start).Seconds()
	if limit > 0 {
		out.Rest, err = carryOut(s, limit, workers)
	}
	return out, err
}

func carryOut(s *scenario, limit time.Duration, workers int) (*rest, error) {
	prices := s.prices()
	done := &rest{PriceBefore: s.price(prices)}
	for done.Seconds < limit.Seconds() {
		p, err := newPass(s, workers)
		if err != nil {
			return nil, err
		}
		start := time.Now()
		commands, err := p.commands(s)
		done.Seconds += time.Since(start).Seconds()
		if err != nil {
			return nil, err
		}
		if len(commands) == 0 {
			done.AtRest = true
			break
		}
		done.Passes++
		for i := range commands {
			done.Evictions += s.apply(&commands[i], done.Passes)
		}
	}
	done.PriceAfter, done.NodesAfter = math.Round(s.price(prices)*1e9)/1e9, len(s.Nodes)
	return done, nil
}

func priceKey(instanceType, zone, capacityType string) string {
	return instanceType + "/" + zone + "/" + capacityType
}

func (s *scenario) prices() map[string]float64 {
	prices := map[string]float64{}
	for _, t := range s.InstanceTypes {
		for _, o := range t.Offerings {
			prices[priceKey(t.Name, o.Zone, o.CapacityType)] = o.Price
		}
	}
	return prices
}

func (s *scenario) price(prices map[string]float64) (sum float64) {
	for _, entry := range s.Nodes {
		l := entry.Node.Labels
		sum += prices[priceKey(l[corev1.LabelInstanceTypeStable], l[corev1.LabelTopologyZone], l[karpv1.CapacityTypeLabelKey])]
	}
	return sum
}

// apply carries a command out on the scenario; it returns how many pods had to move.
func (s *scenario) apply(command *disruption.Command, number int) int {
	gone, moving := map[string]bool{}, map[string]*corev1.Pod{}
	for _, candidate := range command.Candidates {
		gone[candidate.Name()] = true
	}
	var stay []nodeSpec
	for _, entry := range s.Nodes {
		if !gone[entry.Node.Name] {
			stay = append(stay, entry)
			continue
		}
		for _, pod := range entry.Pods {
			if !ownedByDaemonSet(pod) {
				moving[name(pod)] = pod
			}
		}
	}
	s.Nodes = stay
	evicted := len(moving)
	at := map[string]int{}
	for i, entry := range s.Nodes {
		at[entry.Node.Name] = i
	}
	put := func(entry *nodeSpec, pods []*corev1.Pod) {
		for _, pod := range pods {
			if own, ok := moving[name(pod)]; ok {
				own.Spec.NodeName = entry.Node.Name
				entry.Pods = append(entry.Pods, own)
				delete(moving, name(pod))
			}
		}
	}
	for _, node := range command.Results.ExistingNodes {
		if i, ok := at[node.Name()]; ok {
			put(&s.Nodes[i], node.Pods)
		}
	}
	for i, replacement := range command.Replacements {
		entry := s.launch(replacement.NodeClaim, fmt.Sprintf("new-%d-%d", number, i))
		put(&entry, replacement.NodeClaim.Pods)
		s.Nodes = append(s.Nodes, entry)
	}
	return evicted
}

func ownedByDaemonSet(pod *corev1.Pod) bool {
	for _, owner := range pod.OwnerReferences {
		if owner.Kind == "DaemonSet" {
			return true
		}
	}
	return false
}

// launch is the node that the cheapest launch of a claim makes, with the pods of DaemonSets on it.
func (s *scenario) launch(claim *scheduling.NodeClaim, called string) nodeSpec {
	var kind *cloudprovider.InstanceType
	var taken *cloudprovider.Offering
	for _, one := range claim.InstanceTypeOptions {
		offerings := one.Offerings.Available().Compatible(claim.Requirements)
		if len(offerings) == 0 {
			continue
		}
		if o := offerings.Cheapest(); taken == nil || o.Price < taken.Price {
			kind, taken = one, o
		}
	}
	labels := map[string]string{}
	for key, requirement := range kind.Requirements {
		if requirement.Operator() == corev1.NodeSelectorOpIn && requirement.Len() == 1 {
			labels[key] = requirement.Any()
		}
	}
	maps.Copy(labels, claim.Labels)
	for key, requirement := range taken.Requirements {
		labels[key] = requirement.Any()
	}
	maps.Copy(labels, map[string]string{
		corev1.LabelHostname: called, karpv1.NodePoolLabelKey: claim.NodePoolName,
		karpv1.NodeRegisteredLabelKey: "true", karpv1.NodeInitializedLabelKey: "true",
	})
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: called, UID: types.UID(called), Labels: labels, CreationTimestamp: metav1.NewTime(time.Now().Add(-24 * time.Hour)),
		},
		Spec:   corev1.NodeSpec{ProviderID: "aws:///" + labels[corev1.LabelTopologyZone] + "/" + called},
		Status: corev1.NodeStatus{Capacity: kind.Capacity, Allocatable: kind.Allocatable()},
	}
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	entry := nodeSpec{Node: node}
	for _, template := range s.DaemonSetPods {
		pod := template.DeepCopy()
		pod.Name, pod.Spec.NodeName = template.Name+"-"+called, called
		pod.UID = types.UID(pod.Name)
		pod.Status = corev1.PodStatus{Phase: corev1.PodRunning}
		entry.Pods = append(entry.Pods, pod)
	}
	return entry
}
