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
generation. The result is .Values.tlsMaterial: ca is what peers trust, in PEM, and data is what the Secret holds, in
base64. Both are empty when the chart does not know them. What the cluster has is kept: since the installation, the
manager has renewed it.
*/}}
{{- define "sidestep.findTLS" -}}
{{- if not (hasKey .Values "tlsMaterial") }}
{{- $material := dict "ca" .Values.tls.caCertificate "data" dict }}
{{- if not .Values.tls.existingSecret }}
{{- $secret := lookup "v1" "Secret" .Release.Namespace "sidestep-manager-tls" | default dict }}
{{- $data := $secret.data | default dict }}
{{- if not (and (index $data "tls.crt") (index $data "tls.key") (index $data "ca.crt")) }}
{{- $service := "sidestep-manager" }}
{{- $names := list $service (printf "%s.%s" $service .Release.Namespace) (printf "%s.%s.svc" $service .Release.Namespace) }}
{{- $ca := genCAWithKey "sidestep-ca" 730 (genPrivateKey "ecdsa") }}
{{- $server := genSignedCertWithKey $service nil $names 90 $ca (genPrivateKey "ecdsa") }}
{{- $data = dict "ca.crt" (b64enc $ca.Cert) "ca.key" (b64enc $ca.Key) "tls.crt" (b64enc $server.Cert) "tls.key" (b64enc $server.Key) }}
{{- end }}
{{- $ca := index $data "ca.crt" | b64dec | trim }}
{{- $config := lookup "v1" "ConfigMap" .Release.Namespace "sidestep-ca" | default dict }}
{{- $trusted := index ($config.data | default dict) "ca.crt" | default "" | trim }}
{{- if not (contains $ca $trusted) }}
{{- $trusted = printf "%s\n%s" $ca $trusted | trim }}
{{- end }}
{{- $material = dict "ca" $trusted "data" $data }}
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

{{/* The rule of a NetworkPolicy that lets in the API server, on behalf of laptops. */}}
{{- define "sidestep.connectRule" -}}
- ports:
    - port: connect
  {{- $policy := .Values.networkPolicy }}
  {{- if or $policy.apiServerCIDRs $policy.metricsFrom }}
  from:
    {{- range $policy.apiServerCIDRs }}
    - ipBlock:
        cidr: {{ . | quote }}
    {{- else }}
    {{- toYaml $policy.metricsFrom | nindent 4 }}
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

{{/*
Whether apps must be shown their clients' addresses: "required" or "preferred". auto requires it in a new installation. An upgrade
from a version that did not goes on without. The decision is kept in ConfigMap sidestep-config.
*/}}
{{- define "sidestep.clientAddresses" -}}
{{- $value := .Values.nodeagent.clientAddresses }}
{{- if eq $value "auto" }}
{{- $config := lookup "v1" "ConfigMap" .Release.Namespace "sidestep-config" | default dict }}
{{- $kept := index ($config.data | default dict) "client-addresses" | default "" }}
{{- if $kept }}{{ $kept }}{{ else if .Release.IsUpgrade }}preferred{{ else }}required{{ end }}
{{- else }}{{ $value }}{{ end }}
{{- end }}

{{/* Whether the node agent gets NET_ADMIN: "true" or empty. */}}
{{- define "sidestep.nodeagentNetAdmin" -}}
{{- with .Values.nodeagent }}
{{- if or .features.takeover (not .sinceLinux69) (eq .datapath "tc") }}true{{ end }}
{{- end }}
{{- end }}

{{/*
Whether laptops of the version before are admitted, which neither name their user nor log in: "true" or empty. A new installation
does not admit them. An upgrade from a version that did goes on admitting them. The decision is kept in ConfigMap sidestep-config.
*/}}
{{- define "sidestep.olderLaptops" -}}
{{- $value := .Values.compatibility.olderLaptops | toString }}
{{- if eq $value "auto" }}
{{- $config := lookup "v1" "ConfigMap" .Release.Namespace "sidestep-config" | default dict }}
{{- $kept := index ($config.data | default dict) "older-laptops" | default "" }}
{{- if or (eq $kept "true") (and (eq $kept "") .Release.IsUpgrade) }}true{{ end }}
{{- else if eq $value "true" }}true{{ end }}
{{- end }}
