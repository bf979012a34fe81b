// Computes the static hashes of NodePools and EC2NodeClasses with Karpenter's own modules.
//
// It reads a JSON list of objects as they are stored, each with the CA bundle that the controller knows, and
// prints the list with their hashes, as it stands in tests/data/hashes.json. See the README of the folder data.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	aws "github.com/aws/karpenter-provider-aws/pkg/apis/v1"
	core "sigs.k8s.io/karpenter/pkg/apis/v1"
)

type entry struct {
	Hash     string          `json:"hash"`
	CABundle *string         `json:"caBundle,omitempty"`
	Object   json.RawMessage `json:"object"`
}

func hash(object []byte, caBundle *string) (string, error) {
	var kind struct {
		Kind string `json:"kind"`
	}
	if err := json.Unmarshal(object, &kind); err != nil {
		return "", err
	}
	switch kind.Kind {
	case "NodePool":
		pool := &core.NodePool{}
		if err := json.Unmarshal(object, pool); err != nil {
			return "", err
		}
		return pool.Hash(), nil
	case "EC2NodeClass":
		class := &aws.EC2NodeClass{}
		if err := json.Unmarshal(object, class); err != nil {
			return "", err
		}
		return class.Hash(caBundle), nil
	}
	return "", fmt.Errorf("kind %q, expected NodePool or EC2NodeClass", kind.Kind)
}

func run() error {
	var entries []entry
	if err := json.NewDecoder(os.Stdin).Decode(&entries); err != nil {
		return err
	}
	for i := range entries {
		found, err := hash(entries[i].Object, entries[i].CABundle)
		if err != nil {
			return fmt.Errorf("object %d: %w", i, err)
		}
		entries[i].Hash = found
	}
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", " ")
	return out.Encode(entries)
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "hashes:", err)
		os.Exit(1)
	}
}
