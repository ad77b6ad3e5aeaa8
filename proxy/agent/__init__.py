"""The agent's side: its login, its kubeconfig, and the plugin that gives kubectl a token for a minute.

kubectl waits for the plugin at each start, so nothing here imports at its top more than the plugin needs from
its cache: no click, trio, attrs, ssl or cryptography.
"""
