/**
 * The decisions of the handshake, apart from any connection: which protocol version both sides
 * speak and whether caller and answerer mean each other.
 */
import { RekindleError } from './errors.js';
import { PROTOCOL_VERSION } from './frame.js';
import type { Hello, Messages } from './messages.js';
import type { EndpointIdentity } from './transport.js';

export const PROTOCOL = { min: PROTOCOL_VERSION, max: PROTOCOL_VERSION } as const;

/** URL path of the WebSocket: servers get connections that may be silent for ever. */
export const PATH_OF_CLIENTS = '/';
export const PATH_OF_SERVERS = '/server';

export function pathOfRole(role: Hello['role']): string {
  return role === 'server' || role === 'coordinator' ? PATH_OF_SERVERS : PATH_OF_CLIENTS;
}

/**
 * The answer to a HELLO: the reply, or the error with which the connection is refused. An id that
 * one side does not know yet (null) matches everything.
 */
export function answerHello(
  hello: Hello,
  identity: EndpointIdentity,
  features: readonly string[],
): Messages['HELLO']['reply'] | RekindleError {
  const version = Math.min(PROTOCOL.max, hello.protocol.max);
  if (version < PROTOCOL.min || version < hello.protocol.min) {
    return new RekindleError(
      'PROTOCOL_MISMATCH',
      `the caller speaks protocol ${hello.protocol.min} to ${hello.protocol.max}, ` +
        `this ${identity.role} ${PROTOCOL.min} to ${PROTOCOL.max}: upgrade the older side`,
      { details: { min: PROTOCOL.min, max: PROTOCOL.max } },
    );
  }
  const { clusterId, serverId, nonce } = identity;
  if (hello.clusterId !== null && clusterId !== null && hello.clusterId !== clusterId) {
    return new RekindleError(
      'WRONG_CLUSTER',
      `the caller means cluster ${hello.clusterId}, this ${identity.role} is of ${clusterId}`,
      { details: { clusterId } },
    );
  }
  if (hello.expectServerId !== null && hello.expectServerId !== serverId) {
    return new RekindleError(
      'WRONG_SERVER',
      `the caller means server ${hello.expectServerId}, this is ${serverId ?? 'no server yet'}`,
      { details: { serverId, nonce } },
    );
  }
  return {
    protocol: version,
    features: features.filter((feature) => hello.features.includes(feature)),
    role: identity.role,
    clusterId,
    serverId,
  };
}
