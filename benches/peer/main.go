// The peer: Karpenter's own scheduler (the Go module, taken as a library) run on our scenario files.
//
//	peer [flags] FILE...        one result a file, in the form of `karpenter simulate --output json`
//	peer -disrupt FILE...       the next commands of consolidation
//	peer -consolidate N FILE    what consolidation takes, and with -rest D where it ends
//
// With -out DIR each result goes to DIR under the file's own name, else all go to standard output.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/karpenter/pkg/operator/logging"
)

type settings struct {
	repeat  int
	workers int
	limit   time.Duration
	// Print the next commands of consolidation.
	disrupt bool
	// Simulations of consolidation to time instead of scheduling.
	simulations int
	// How long passes may take in all until nothing is left to consolidate.
	rest time.Duration
}

func main() {
	log.SetLogger(logging.NopLogger)
	var s settings
	out := flag.String("out", "", "folder for the results")
	flag.IntVar(&s.repeat, "repeat", 1, "runs a file; map order makes them differ, the best outcome is printed")
	flag.IntVar(&s.workers, "workers", 1, "scheduler workers; the chart's default CPU request gives 1, which is also the fastest")
	flag.DurationVar(&s.limit, "limit", 0, "time limit of one run; 0 is none")
	flag.BoolVar(&s.disrupt, "disrupt", false, "print the next commands of consolidation instead of scheduling")
	flag.IntVar(&s.simulations, "consolidate", 0, "time so many simulations of consolidation instead of scheduling")
	flag.DurationVar(&s.rest, "rest", 0, "with -consolidate: carry commands out until nothing is left, for so long at most")
	flag.Parse()
	if flag.NArg() == 0 || s.repeat < 1 {
		fmt.Fprintln(os.Stderr, "usage: peer [flags] FILE...")
		os.Exit(2)
	}
	failed := false
	for _, path := range flag.Args() {
		if err := one(path, *out, s); err != nil {
			fmt.Fprintf(os.Stderr, "peer: %s: %v\n", path, err)
			failed = true
		}
	}
	if failed {
		os.Exit(1)
	}
}

func one(path, out string, s settings) error {
	scenario, err := readScenario(path)
	if err != nil {
		return err
	}
	var result any
	if s.disrupt {
		result, err = next(scenario, s.workers)
	} else if s.simulations > 0 {
		result, err = consolidate(scenario, s.simulations, s.rest, s.workers)
	} else {
		result, err = run(scenario, s)
	}
	if err != nil {
		return err
	}
	var sink io.Writer = os.Stdout
	if out != "" {
		file, err := os.Create(filepath.Join(out, filepath.Base(path)))
		if err != nil {
			return err
		}
		defer file.Close()
		sink = file
	}
	encoder := json.NewEncoder(sink)
	encoder.SetIndent("", " ")
	return encoder.Encode(result)
}
