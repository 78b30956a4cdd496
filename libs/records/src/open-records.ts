import { answerTimeoutMs, untilBrokerAnswers } from '@medmesh/events';
import { jetstream, jetstreamManager } from '@nats-io/jetstream';
import { Kvm } from '@nats-io/kv';
import type { NatsConnection } from '@nats-io/transport-node';
import { type Bucket, type Codec, createBucket } from './bucket.ts';

export type BucketOptions = {
  /** Records vanish this long after their last change. Absent: never. */
  maxAgeMs?: number;
};

export interface Records {
  /** Opens the bucket of one resource type, e.g. `models`, and creates it if it is new: on file storage, the newest value of each key. */
  bucket<T>(name: string, codec: Codec<T>, o?: BucketOptions): Promise<Bucket<T>>;
}

export type RecordsOptions = {
  /** Copies in a cluster; 1 on a single server. */
  replicas?: number;
};

/** Records in the NATS KV behind this connection. */
export async function openRecords(nc: NatsConnection, { replicas = 1 }: RecordsOptions = {}): Promise<Records> {
  const js = jetstream(nc, { timeout: answerTimeoutMs });
  const manager = await untilBrokerAnswers('reach JetStream', () => jetstreamManager(nc, { timeout: answerTimeoutMs }));
  const kvm = new Kvm(js);
  return {
    async bucket<T>(name: string, codec: Codec<T>, o: BucketOptions = {}): Promise<Bucket<T>> {
      // Reads go to the leader, never to a replica that may lag: whoever writes and then reads sees the write.
      const options = {
        history: 1,
        allow_direct: false,
        replicas,
        ...(o.maxAgeMs === undefined ? {} : { ttl: o.maxAgeMs }),
      };
      await untilBrokerAnswers(`open the bucket ${name}`, async () => {
        await kvm.create(name, options);
        // A bucket that is there already is taken as it is: one from before the cluster grew gets its copies here.
        const stream = `KV_${name}`;
        const { config } = await manager.streams.info(stream);
        if (config.num_replicas !== replicas)
          await manager.streams.update(stream, { ...config, num_replicas: replicas });
      });
      return createBucket({ nc, js, manager }, name, codec);
    },
  };
}
