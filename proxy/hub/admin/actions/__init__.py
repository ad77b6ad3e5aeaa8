"""What an operator can do to a hub: each action in terms of the store, without any HTTP.

An action returns what its caller is shown. Secrets (an agent's API key, a relay's private key, an admin
token) are made here, returned once, and kept only as hash or public key.

Where an action changes whom a relay must be able to impersonate, its result names the clusters whose
ClusterRole is to be applied again (`apply_rbac`). Each raises what the store raises, and InvalidError.
"""
