{{- /*
Values that the chart does not have, each with the nearest that it has. Helm checks types by
values.schema.json and takes unknown names in silence; the same file, which lies in files/ as well since
templates cannot read it elsewhere, says here which names there are.
*/ -}}
{{- define "karpenter.checkValues" -}}
{{- $schema := .Files.Get "files/values.schema.json" | fromJson }}
{{- $problems := include "karpenter.unknownValues" (dict "values" .Values "schema" $schema "path" "") | trim }}
{{- with .Values.settings }}
{{- $aws := .awsFeatureGates | default dict }}
{{- if and (eq (toString .enableDRA) "true") (not (and (kindIs "invalid" .ignoreDRARequests) (kindIs "invalid" $aws.draNVIDIAGPU) (kindIs "invalid" $aws.draEFA))) }}
{{- fail "settings.enableDRA cannot be set together with settings.ignoreDRARequests, settings.awsFeatureGates.draNVIDIAGPU or settings.awsFeatureGates.draEFA" }}
{{- end }}
{{- if and (eq (toString .legacyNodeRepair) "true") (eq (toString (.featureGates | default dict).terminateFirstRepair) "true") }}
{{- fail "settings.legacyNodeRepair cannot be set together with settings.featureGates.terminateFirstRepair" }}
{{- end }}
{{- end }}
{{- with $problems }}
{{- fail (printf "values that this chart does not have:\n%s" .) }}
{{- end }}
{{- end }}

{{- define "karpenter.unknownValues" -}}
{{- $known := .schema.properties }}
{{- $path := .path }}
{{- range $name, $value := .values }}
{{- if hasKey $known $name }}
{{- $schema := get $known $name }}
{{- if and (kindIs "map" $value) (hasKey $schema "properties") }}
{{- include "karpenter.unknownValues" (dict "values" $value "schema" $schema "path" (printf "%s%s." $path $name)) }}
{{- end }}
{{- else }}
{{- $near := include "karpenter.nearest" (dict "name" $name "known" (keys $known | sortAlpha)) | trim }}
{{- printf "  %s%s%s\n" $path $name (empty $near | ternary "" (printf ", did you mean %s%s?" $path $near)) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The known name with the fewest letters to change, if that is less than half of them. */ -}}
{{- define "karpenter.nearest" -}}
{{- $best := dict "name" "" "distance" (div (add (len .name) 1) 2 | int) }}
{{- $name := lower .name }}
{{- range $candidate := .known }}
{{- $distance := include "karpenter.distance" (dict "a" $name "b" (lower $candidate)) | trim | int }}
{{- if lt $distance ($best.distance | int) }}
{{- $_ := set $best "name" $candidate }}
{{- $_ := set $best "distance" $distance }}
{{- end }}
{{- end }}
{{- $best.name }}
{{- end }}

{{- /* Levenshtein's distance of a and b, row by row. */ -}}
{{- define "karpenter.distance" -}}
{{- $state := dict "row" (untilStep 0 (add (len .b) 1 | int) 1) }}
{{- $b := splitList "" .b }}
{{- range $i, $x := splitList "" .a }}
{{- $before := $state.row }}
{{- $next := dict "row" (list (add $i 1)) }}
{{- range $j, $y := $b }}
{{- $change := add (index $before $j) (ternary 0 1 (eq $x $y)) }}
{{- $drop := add (index $before (add $j 1 | int)) 1 }}
{{- $insert := add (index $next.row $j) 1 }}
{{- $_ := set $next "row" (append $next.row (min $change $drop $insert)) }}
{{- end }}
{{- $_ := set $state "row" $next.row }}
{{- end }}
{{- last $state.row }}
{{- end }}
