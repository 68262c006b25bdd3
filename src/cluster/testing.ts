/**
 * `rekindle/testing`: a real cluster for the tests of programs that use Rekindle.
 *
 *   await using cluster = await startCluster();
 *   await using client = await connect(cluster.url);
 *
 * Its processes end with the test process, whatever happens to that.
 */
import { LocalCluster, type LocalClusterOptions } from './local-cluster.js';

export { LocalCluster, type LocalClusterOptions } from './local-cluster.js';

/** Four servers with three replicas in a temporary folder, 64 MiB of log memory each. */
export function startCluster(options: LocalClusterOptions = {}): Promise<LocalCluster> {
  return LocalCluster.start({ memoryBytes: 64 * 2 ** 20, ...options });
}
