// Prints the limits of network interfaces that the VPC resource controller knows, as JSON.
package main

import (
	"encoding/json"
	"os"

	"github.com/aws/amazon-vpc-resource-controller-k8s/pkg/aws/vpc"
)

func main() {
	if err := json.NewEncoder(os.Stdout).Encode(vpc.Limits); err != nil {
		os.Exit(1)
	}
}
