// Deletes a config map by client-node: `node delete.js NAMESPACE NAME`.
//
// The kubeconfig comes by KUBECONFIG, its current context counts. Prints the Status of a refusal, and exits 1.
import { CoreV1Api, KubeConfig } from "@kubernetes/client-node";

const [namespace, name] = process.argv.slice(2);
const config = new KubeConfig();
config.loadFromDefault();
try {
  await config.makeApiClient(CoreV1Api).deleteNamespacedConfigMap({ namespace, name });
} catch (refusal) {
  console.error(String(refusal.body ?? refusal));
  process.exit(1);
}
