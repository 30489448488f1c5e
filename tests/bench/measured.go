package main

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"strings"
	"text/template"

	"sidestep.dev/sidestep/tests/lab"
)

//go:embed measured.yaml
var measuredYAML string

// What listens in the measured pod.
const (
	appPort   = "8080"
	httpPort  = "8081" // a sidecar that looks at requests
	bytesPort = "8082" // a sidecar that copies bytes
)

// upMeasured puts the pod that is measured into the shop's namespace.
func (b *bench) upMeasured(ctx context.Context) (down func(), err error) {
	var yaml strings.Builder
	err = template.Must(template.New("").Parse(measuredYAML)).Execute(&yaml, map[string]any{
		"Namespace": lab.Namespace,
		"Image":     "docker.io/sidestep/apps:" + os.Getenv("SIDESTEP_IMAGE_TAG"),
		"Containers": map[string]string{
			"app":   "serve, --name=measured, --listen=:" + appPort,
			"http":  "sidecar, --listen=:" + httpPort + ", --app=127.0.0.1:" + appPort,
			"bytes": "sidecar, --tcp, --listen=:" + bytesPort + ", --app=127.0.0.1:" + appPort,
		},
		"Ports": map[string]string{"app": appPort, "http": httpPort, "bytes": bytesPort},
	})
	if err != nil {
		return nil, err
	}
	if err := b.Apply(ctx, yaml.String()); err != nil {
		return nil, err
	}
	down = func() {
		_, _ = b.Kubectl(context.WithoutCancel(ctx), "-n", lab.Namespace, "delete", "deployment/measured", "service/measured", "--wait=false")
	}
	if _, err := b.Kubectl(ctx, "-n", lab.Namespace, "rollout", "status", "deployment/measured", "--timeout=60s"); err != nil {
		down()
		return nil, err
	}
	pods, err := b.Pods(ctx, lab.Namespace, "app=measured")
	if err == nil && len(pods) != 1 {
		err = fmt.Errorf("%d pods are there to be measured", len(pods))
	}
	if err != nil {
		down()
		return nil, err
	}
	b.pod = pods[0]
	return down, nil
}
