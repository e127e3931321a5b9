"""Certificates, keys and kubeconfigs of a cluster, made one way everywhere. Other rooms read the files only."""
