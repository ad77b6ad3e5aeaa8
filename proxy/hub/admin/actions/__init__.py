"""The operators' actions on a hub: each in terms of the store, without HTTP.

An action returns the body of its answer. Secrets (an agent's API key, a relay's private key, an admin token)
are made here, returned once, and stored only as a hash or public key.

If an action changes the agents that a relay impersonates, its result names the clusters whose ClusterRole
must be applied again (`apply_rbac`). Actions raise the store's errors, and InvalidError.
"""
