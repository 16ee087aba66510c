package nodeagent

// definitionCRD is the kind as the de-facto standard v1.3 has it (section 3.1).
const definitionCRD = `{
	"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
	"metadata": {"name": "network-attachment-definitions.k8s.cni.cncf.io"},
	"spec": {
		"group": "k8s.cni.cncf.io", "scope": "Namespaced",
		"names": {
			"plural": "network-attachment-definitions", "singular": "network-attachment-definition",
			"kind": "NetworkAttachmentDefinition", "shortNames": ["net-attach-def"]
		},
		"versions": [{
			"name": "v1", "served": true, "storage": true,
			"schema": {"openAPIV3Schema": {
				"type": "object", "description": "A network that Pods can be attached to by annotation.",
				"properties": {
					"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
					"spec": {"type": "object", "properties": {
						"config": {"type": "string", "description": "A CNI configuration or list of them, as JSON; without, a file of that name on the node."}
					}}
				}
			}}
		}]
	}
}`
