package main

import (
	"context"
	"encoding/json"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	karpv1 "sigs.k8s.io/karpenter/pkg/apis/v1"
)

// reader answers the library's reads from memory, by the indexes an informer cache would have and with copies on the
// way out, so that reads cost the peer what they cost it in production. Nothing is ever written.
type reader struct {
	client.Client
	pods       []*corev1.Pod
	byNode     map[string][]*corev1.Pod
	bySpace    map[string][]*corev1.Pod
	nodes      table[corev1.Node]
	claims     table[karpv1.NodeClaim]
	pools      table[karpv1.NodePool]
	daemonSets table[appsv1.DaemonSet]
	namespaces table[corev1.Namespace]
	pvcs       table[corev1.PersistentVolumeClaim]
	volumes    table[corev1.PersistentVolume]
	classes    table[storagev1.StorageClass]
	csiNodes   table[storagev1.CSINode]
	budgets    table[policyv1.PodDisruptionBudget]
}

// table keeps objects by name (and namespace where they have one) in the order in which they came.
type table[T any] struct {
	keys  []string
	items map[string]*T
}

func (t *table[T]) put(key string, item *T) {
	if t.items == nil {
		t.items = map[string]*T{}
	}
	if _, known := t.items[key]; !known {
		t.keys = append(t.keys, key)
	}
	t.items[key] = item
}

func (t *table[T]) get(key string, copyInto func(*T), kind string) error {
	item, ok := t.items[key]
	if !ok {
		return apierrors.NewNotFound(schema.GroupResource{Resource: kind}, key)
	}
	copyInto(item)
	return nil
}

func (t *table[T]) each(visit func(*T)) {
	for _, key := range t.keys {
		visit(t.items[key])
	}
}

func newReader(base client.Client) *reader {
	return &reader{Client: base, byNode: map[string][]*corev1.Pod{}, bySpace: map[string][]*corev1.Pod{}}
}

func (r *reader) addPod(pod *corev1.Pod) {
	r.pods = append(r.pods, pod)
	r.byNode[pod.Spec.NodeName] = append(r.byNode[pod.Spec.NodeName], pod)
	r.bySpace[pod.Namespace] = append(r.bySpace[pod.Namespace], pod)
}

func (r *reader) addObject(raw json.RawMessage) error {
	var head struct {
		Kind     string `json:"kind"`
		Metadata struct {
			Name      string `json:"name"`
			Namespace string `json:"namespace"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return err
	}
	name, spaced := head.Metadata.Name, head.Metadata.Namespace+"/"+head.Metadata.Name
	switch head.Kind {
	case "Namespace":
		return store(&r.namespaces, name, raw)
	case "PersistentVolumeClaim":
		return store(&r.pvcs, spaced, raw)
	case "PersistentVolume":
		return store(&r.volumes, name, raw)
	case "StorageClass":
		return store(&r.classes, name, raw)
	case "CSINode":
		return store(&r.csiNodes, name, raw)
	case "PodDisruptionBudget":
		return store(&r.budgets, spaced, raw)
	}
	return nil
}

func store[T any](t *table[T], key string, raw json.RawMessage) error {
	item := new(T)
	if err := json.Unmarshal(raw, item); err != nil {
		return err
	}
	t.put(key, item)
	return nil
}

func (r *reader) Get(_ context.Context, key client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	spaced := key.Namespace + "/" + key.Name
	switch o := into.(type) {
	case *corev1.Node:
		return r.nodes.get(key.Name, func(x *corev1.Node) { x.DeepCopyInto(o) }, "nodes")
	case *karpv1.NodeClaim:
		return r.claims.get(key.Name, func(x *karpv1.NodeClaim) { x.DeepCopyInto(o) }, "nodeclaims")
	case *karpv1.NodePool:
		return r.pools.get(key.Name, func(x *karpv1.NodePool) { x.DeepCopyInto(o) }, "nodepools")
	case *corev1.PersistentVolumeClaim:
		return r.pvcs.get(spaced, func(x *corev1.PersistentVolumeClaim) { x.DeepCopyInto(o) }, "persistentvolumeclaims")
	case *corev1.PersistentVolume:
		return r.volumes.get(key.Name, func(x *corev1.PersistentVolume) { x.DeepCopyInto(o) }, "persistentvolumes")
	case *storagev1.StorageClass:
		return r.classes.get(key.Name, func(x *storagev1.StorageClass) { x.DeepCopyInto(o) }, "storageclasses")
	case *storagev1.CSINode:
		return r.csiNodes.get(key.Name, func(x *storagev1.CSINode) { x.DeepCopyInto(o) }, "csinodes")
	case *corev1.Pod:
		for _, pod := range r.bySpace[key.Namespace] {
			if pod.Name == key.Name {
				pod.DeepCopyInto(o)
				return nil
			}
		}
	}
	return apierrors.NewNotFound(schema.GroupResource{Resource: fmt.Sprintf("%T", into)}, key.Name)
}

func (r *reader) List(_ context.Context, into client.ObjectList, opts ...client.ListOption) error {
	options := client.ListOptions{}
	options.ApplyOptions(opts)
	matches := func(set map[string]string) bool {
		return options.LabelSelector == nil || options.LabelSelector.Matches(labels.Set(set))
	}
	switch l := into.(type) {
	case *corev1.PodList:
		r.listPods(l, options, matches)
	case *corev1.NodeList:
		r.nodes.each(func(x *corev1.Node) { l.Items = append(l.Items, *x.DeepCopy()) })
	case *karpv1.NodePoolList:
		r.pools.each(func(x *karpv1.NodePool) { l.Items = append(l.Items, *x.DeepCopy()) })
	case *karpv1.NodeClaimList:
		r.claims.each(func(x *karpv1.NodeClaim) { l.Items = append(l.Items, *x.DeepCopy()) })
	case *appsv1.DaemonSetList:
		r.daemonSets.each(func(x *appsv1.DaemonSet) { l.Items = append(l.Items, *x.DeepCopy()) })
	case *policyv1.PodDisruptionBudgetList:
		r.budgets.each(func(x *policyv1.PodDisruptionBudget) { l.Items = append(l.Items, *x.DeepCopy()) })
	case *corev1.NamespaceList:
		r.namespaces.each(func(x *corev1.Namespace) {
			if matches(x.Labels) {
				l.Items = append(l.Items, *x.DeepCopy())
			}
		})
	}
	return nil
}

func (r *reader) listPods(l *corev1.PodList, options client.ListOptions, matches func(map[string]string) bool) {
	from := r.pods
	if options.Namespace != "" {
		from = r.bySpace[options.Namespace]
	}
	if options.FieldSelector != nil {
		if node, exact := options.FieldSelector.RequiresExactMatch("spec.nodeName"); exact {
			from = r.byNode[node]
		}
	}
	shared := options.UnsafeDisableDeepCopy != nil && *options.UnsafeDisableDeepCopy
	for _, pod := range from {
		if (options.Namespace != "" && pod.Namespace != options.Namespace) || !matches(pod.Labels) {
			continue
		}
		if shared {
			l.Items = append(l.Items, *pod)
		} else {
			l.Items = append(l.Items, *pod.DeepCopy())
		}
	}
}
