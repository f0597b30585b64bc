# `terraform destroy` leaves the rules on the nodes, and pods blocked: see "Uninstall" in docs/install.md.
terraform {
  required_providers {
    helm = {
      source  = "hashicorp/helm"
      version = "~> 3.0"
    }
    kubernetes = {
      source  = "hashicorp/kubernetes"
      version = ">= 2.30"
    }
  }
}

# Before the release: without the label, a cluster that enforces Pod Security refuses the agent's pods.
resource "kubernetes_namespace_v1" "imds_guard" {
  metadata {
    name = "imds-guard"
    labels = {
      "pod-security.kubernetes.io/enforce" = "privileged"
    }
  }
}

resource "helm_release" "imds_guard" {
  name       = "imds-guard"
  namespace  = kubernetes_namespace_v1.imds_guard.metadata[0].name
  repository = "oci://registry.example.com/charts"
  chart      = "imds-guard"
  version    = "0.1.0"
  values     = [file("${path.module}/values.yaml")]

  # One node is updated at a time. For many nodes set updateStrategy.rollingUpdate.maxUnavailable, for instance to 5%.
  timeout = 1800
}
