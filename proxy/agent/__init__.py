"""The agent's side: its login, its kubeconfig, and the plugin that gives kubectl short-lived tokens.

kubectl runs the plugin at each start and waits for it. So modules here import at the top only what the plugin
needs to answer from its cache: no click, trio, attrs, ssl or cryptography.
"""
