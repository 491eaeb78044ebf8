"""Digests of images and actions, software bills of materials, licences and advisories."""
