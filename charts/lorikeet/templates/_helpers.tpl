{{- /* Names, labels and image references, in one place. */ -}}

{{- define "lorikeet.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "lorikeet.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains (include "lorikeet.name" .) .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "lorikeet.name" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* Cluster-scoped names carry the namespace, so that releases of one name in two namespaces do not collide. */ -}}
{{- define "lorikeet.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "lorikeet.fullname" .) -}}
{{- end -}}

{{- define "lorikeet.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "lorikeet.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: name the ServiceAccount that exists, or set serviceAccount.create" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "lorikeet.selectorLabels" -}}
app.kubernetes.io/name: {{ include "lorikeet.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "lorikeet.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "lorikeet.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: lorikeet
{{- end -}}

{{- /* repository[:tag][@digest]; with neither, the chart's appVersion is the tag. Takes {image, appVersion}. */ -}}
{{- define "lorikeet.image" -}}
{{- $image := .image -}}
{{- $tag := $image.tag -}}
{{- if not (or $tag $image.digest) }}{{ $tag = .appVersion }}{{ end -}}
{{- $image.repository -}}
{{- if $tag }}:{{ $tag }}{{ end -}}
{{- if $image.digest }}@{{ $image.digest }}{{ end -}}
{{- end -}}

{{- define "lorikeet.progressName" -}}
{{- printf "%s-progress" (include "lorikeet.fullname" . | trunc 54 | trimSuffix "-") -}}
{{- end -}}

{{- define "lorikeet.progressHost" -}}
{{- printf "%s.%s.svc" (include "lorikeet.progressName" .) .Release.Namespace -}}
{{- end -}}

{{- define "lorikeet.progressSecret" -}}
{{- if eq .Values.progress.certificate "secret" -}}
{{- required "progress.secretName: name the Secret with the certificate, or choose another progress.certificate" .Values.progress.secretName -}}
{{- else -}}
{{- default (include "lorikeet.progressName" .) .Values.progress.secretName -}}
{{- end -}}
{{- end -}}
