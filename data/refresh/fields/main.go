// Writes the fields of Kubernetes' objects as they are numbered in protobuf, from the tags of the Go types.
package main

import (
	"encoding/json"
	"fmt"
	"reflect"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// What the controller lists in protobuf, and the answer to a request that fails.
var roots = []any{corev1.PodList{}, corev1.NodeList{}, metav1.Status{}}

// Types with a JSON of their own.
var special = map[reflect.Type]string{
	reflect.TypeFor[metav1.Time]():        "time",
	reflect.TypeFor[metav1.MicroTime]():   "time",
	reflect.TypeFor[resource.Quantity]():  "quantity",
	reflect.TypeFor[intstr.IntOrString](): "int-or-text",
	reflect.TypeFor[metav1.FieldsV1]():    "", // Who set which field: nothing reads it.
}

var messages = map[string][]string{}

func main() {
	for _, root := range roots {
		walk(reflect.TypeOf(root))
	}
	names := make([]string, 0, len(messages))
	for name := range messages {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Print(strings.Join(messages[name], ""))
	}
}

func walk(message reflect.Type) {
	name := message.Name()
	if _, known := messages[name]; known {
		return
	}
	messages[name] = nil
	for i := range message.NumField() {
		field := message.Field(i)
		tag := strings.Split(field.Tag.Get("protobuf"), ",")
		if len(tag) < 2 {
			continue
		}
		jsonName, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		t, pointer := field.Type, field.Type.Kind() == reflect.Pointer
		if pointer {
			t = t.Elem()
		}
		shape := "one"
		_, own := special[t]
		switch {
		case own || pointer:
		case t.Kind() == reflect.Map:
			shape, t = "map", t.Elem()
		case t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8:
			shape, t = "list", t.Elem()
		}
		flag := "-"
		// Go writes these into every message, and leaves them out of JSON where they are zero.
		if shape == "one" && !pointer && strings.Contains(options, "omitempty") {
			flag = "unless-zero"
		}
		if field.Anonymous && jsonName == "" {
			flag, jsonName = "inline", "-"
		}
		kind := kind(t)
		if kind == "" {
			continue
		}
		messages[name] = append(messages[name],
			fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s\n", name, tag[1], jsonName, shape, kind, flag))
	}
}

func kind(t reflect.Type) string {
	if kind, own := special[t]; own {
		return kind
	}
	switch t.Kind() {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "boolean"
	case reflect.Int32, reflect.Int64:
		return "number"
	case reflect.Struct:
		if t.Implements(reflect.TypeFor[json.Marshaler]()) {
			panic("JSON of its own: " + t.String())
		}
		walk(t)
		return t.Name()
	}
	if t.Kind() == reflect.Slice {
		return "" // Bytes: nothing reads any.
	}
	panic("unknown: " + t.String())
}
