{{- /* SPDX-License-Identifier: Apache-2.0 */ -}}
{{/* Labels that select the pods of a component. Called with a dict of root and component. */}}
{{- define "sidestep.selectorLabels" -}}
app.kubernetes.io/name: sidestep
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of every object. Called with a dict of root and, for what belongs to one component, component. */}}
{{- define "sidestep.labels" -}}
app.kubernetes.io/name: sidestep
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | replace "+" "_" | trunc 63 | trimSuffix "-" | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Reference of an image. Called with a dict of root and name. */}}
{{- define "sidestep.image" -}}
{{- $image := .root.Values.image -}}
{{- $parts := list -}}
{{- range append (splitList "\n" (include "sidestep.registry" .root)) .name -}}
{{- if . }}{{ $parts = append $parts (trimAll "/" .) }}{{ end -}}
{{- end -}}
{{- $digest := dig .name "image" "digest" "" (.root.Values | merge (dict)) -}}
{{- join "/" $parts }}{{ if $digest }}@{{ $digest }}{{ else }}:{{ $image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{/*
Where images are: registry and repository, a line each. Without a registry it is where the installed images come from, so that an
upgrade from a version with a default registry goes on. A new installation is told what to do.
*/}}
{{- define "sidestep.registry" -}}
{{- $image := .Values.image -}}
{{- $installed := "" -}}
{{- range dig "spec" "template" "spec" "containers" list (lookup "apps/v1" "Deployment" .Release.Namespace "sidestep-manager") -}}
{{- if eq .name "manager" }}{{ $installed = regexReplaceAll "/?manager([:@].*)?$" .image "" }}{{ end -}}
{{- end -}}
{{- if $image.registry -}}
{{- $image.registry }}{{ "\n" }}{{ $image.repository -}}
{{- else if $installed -}}
{{- $installed -}}
{{- else if eq $image.pullPolicy "Never" -}}
docker.io{{ "\n" }}{{ $image.repository -}}
{{- else -}}
{{- fail "image.registry is not set: push the images to a registry of yours (make images IMAGE_REGISTRY=registry.example.com/you) and install with --set image.registry=registry.example.com/you" -}}
{{- end -}}
{{- end }}

{{- define "sidestep.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "sidestep.tlsSecretName" -}}
{{- .Values.tls.existingSecret | default "sidestep-manager-tls" }}
{{- end }}

{{/*
Finds the certificates of this installation, once per rendering: what several templates print must come from one
generation. The result is .Values.tlsMaterial with ca, cert and key, each PEM and empty when the chart does not know it.
A certificate that the cluster has is kept, so an upgrade restarts nothing and laptops keep their session.
*/}}
{{- define "sidestep.findTLS" -}}
{{- if not (hasKey .Values "tlsMaterial") }}
{{- $material := dict "ca" .Values.tls.caCertificate "cert" "" "key" "" }}
{{- $secret := lookup "v1" "Secret" .Release.Namespace (include "sidestep.tlsSecretName" .) | default dict }}
{{- $data := $secret.data | default dict }}
{{- if .Values.tls.existingSecret }}
{{- $_ := set $material "cert" (index $data "tls.crt" | default "" | b64dec) }}
{{- else if and (index $data "tls.crt") (index $data "tls.key") (index $data "ca.crt") }}
{{- $_ := set $material "cert" (index $data "tls.crt" | b64dec) }}
{{- $_ := set $material "key" (index $data "tls.key" | b64dec) }}
{{- $_ := set $material "ca" (index $data "ca.crt" | b64dec) }}
{{- else }}
{{- $service := "sidestep-manager" }}
{{- $names := list $service (printf "%s.%s" $service .Release.Namespace) (printf "%s.%s.svc" $service .Release.Namespace) }}
{{- $ca := genCAWithKey "sidestep-ca" 3650 (genPrivateKey "ecdsa") }}
{{- $server := genSignedCertWithKey $service nil $names 3650 $ca (genPrivateKey "ecdsa") }}
{{- $material = dict "ca" $ca.Cert "cert" $server.Cert "key" $server.Key }}
{{- end }}
{{- $_ := set .Values "tlsMaterial" $material }}
{{- end }}
{{- end }}

{{/* Where a component may run besides its own node selector: the images are for Linux. */}}
{{- define "sidestep.nodeSelector" -}}
{{- toYaml (merge (dict "kubernetes.io/os" "linux") .) }}
{{- end }}

{{/* The developers as subjects of a binding. */}}
{{- define "sidestep.subjects" -}}
{{- range .Values.developers }}
- kind: {{ .kind }}
  name: {{ .name | quote }}
  {{- if eq .kind "ServiceAccount" }}
  namespace: {{ required "a developer of kind ServiceAccount needs a namespace" .namespace }}
  {{- else }}
  apiGroup: rbac.authorization.k8s.io
  {{- end }}
{{- end }}
{{- end }}

{{/* The rule of a NetworkPolicy that lets Prometheus in. */}}
{{- define "sidestep.metricsRule" -}}
- ports:
    - port: http
  {{- with .Values.networkPolicy.metricsFrom }}
  from:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
