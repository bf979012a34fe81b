{{- define "karpenter.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "karpenter.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name }}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- .Values.fullnameOverride | default $full | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "karpenter.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "karpenter.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "karpenter.selectorLabels" -}}
app.kubernetes.io/name: {{ include "karpenter.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "karpenter.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "karpenter.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.additionalLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Metadata under a name: labels and annotations that every object has. Takes root, name, namespace, labels, annotations. */ -}}
{{- define "karpenter.metadata" -}}
name: {{ .name }}
{{- with .namespace }}
namespace: {{ . }}
{{- end }}
labels:
  {{- include "karpenter.labels" .root | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.annotations | default dict) .root.Values.additionalAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* The one subject of every binding. */ -}}
{{- define "karpenter.subjects" -}}
subjects:
  - kind: ServiceAccount
    name: {{ include "karpenter.serviceAccountName" . }}
    namespace: {{ .Release.Namespace }}
{{- end }}

{{- define "karpenter.image" -}}
{{- with .Values.controller.image -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ with .digest }}@{{ . }}{{ end }}
{{- end }}
{{- end }}

{{- /* Gives a term or constraint without labelSelector the chart's own. Takes root and term; changes term. */ -}}
{{- define "karpenter.fillSelector" -}}
{{- if not (hasKey .term "labelSelector") }}
{{- $_ := set .term "labelSelector" (dict "matchLabels" (include "karpenter.selectorLabels" .root | fromYaml)) }}
{{- end }}
{{- end }}

{{- define "karpenter.affinity" -}}
{{- $affinity := deepCopy (.Values.affinity | default dict) }}
{{- range $kind := list "podAffinity" "podAntiAffinity" }}
{{- with get $affinity $kind }}
{{- range .requiredDuringSchedulingIgnoredDuringExecution }}
{{- include "karpenter.fillSelector" (dict "root" $ "term" .) }}
{{- end }}
{{- range .preferredDuringSchedulingIgnoredDuringExecution }}
{{- include "karpenter.fillSelector" (dict "root" $ "term" .podAffinityTerm) }}
{{- end }}
{{- end }}
{{- end }}
{{- toYaml $affinity }}
{{- end }}

{{- define "karpenter.topologySpread" -}}
{{- $constraints := deepCopy (.Values.topologySpreadConstraints | default list) }}
{{- range $constraints }}
{{- include "karpenter.fillSelector" (dict "root" $ "term" .) }}
{{- end }}
{{- toYaml $constraints }}
{{- end }}

{{- /* Environment variables whose values may hold template text; empty ones are left out. Takes root and pairs of name and value. */ -}}
{{- define "karpenter.environment" -}}
{{- range .pairs }}
{{- if index . 1 }}
- name: {{ index . 0 }}
  value: {{ tpl (toString (index . 1)) $.root | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Every gate of a list with its value; the binary's default where it has none. Takes values and names, pairs of gate and value. */ -}}
{{- define "karpenter.gates" -}}
{{- $values := .values | default dict }}
{{- $pairs := list }}
{{- range .names }}
{{- $value := hasKey $values (index . 1) | ternary (get $values (index . 1)) nil }}
{{- if kindIs "invalid" $value }}
{{- $value = eq (index . 0) "ReservedCapacity" }}
{{- end }}
{{- $pairs = append $pairs (printf "%s=%v" (index . 0) $value) }}
{{- end }}
{{- join "," $pairs }}
{{- end }}

{{- define "karpenter.featureGates" -}}
{{- include "karpenter.gates" (dict "values" .Values.settings.featureGates "names" (list
  (list "ReservedCapacity" "reservedCapacity")
  (list "SpotToSpotConsolidation" "spotToSpotConsolidation")
  (list "NodeRepair" "nodeRepair")
  (list "NodeOverlay" "nodeOverlay")
  (list "StaticCapacity" "staticCapacity")
  (list "CapacityBuffer" "capacityBuffer")
  (list "TerminateFirstDrift" "terminateFirstDrift")
  (list "TerminateFirstRepair" "terminateFirstRepair")
  (list "PodDeletionCostManagement" "podDeletionCostManagement")
)) }}
{{- end }}

{{- define "karpenter.awsFeatureGates" -}}
{{- $gates := deepCopy (.Values.settings.awsFeatureGates | default dict) }}
{{- if eq (toString .Values.settings.enableDRA) "true" }}
{{- $_ := set $gates "draNVIDIAGPU" true }}
{{- $_ := set $gates "draEFA" true }}
{{- end }}
{{- include "karpenter.gates" (dict "values" $gates "names" (list
  (list "NodeClassCEL" "nodeClassCEL")
  (list "DRANVIDIAGPU" "draNVIDIAGPU")
  (list "DRAEFA" "draEFA")
  (list "RebootForRepair" "rebootForRepair")
)) }}
{{- end }}

{{- /* True where pods' resource claims count: the rights to read them are needed. */ -}}
{{- define "karpenter.dynamicResources" -}}
{{- $gates := include "karpenter.awsFeatureGates" . }}
{{- if or (eq (toString .Values.settings.ignoreDRARequests) "false") (contains "DRANVIDIAGPU=true" $gates) (contains "DRAEFA=true" $gates) }}true{{ end }}
{{- end }}
