/**
 * `etcd://user:password@host:port,host:port/prefix?…` as data; `etcds://` is the same over TLS.
 * Options: `ca`, `cert` and `key` name PEM files (`etcds` only), `passwordFile` a file with the
 * password. Anything that is not understood is refused: an ignored option would be a promise not
 * kept.
 */
import { addressProblem } from '../../rpc/address.js';
import { RekindleError } from '../../rpc/errors.js';

export interface EtcdAddress {
  /** `host:port` of each member. */
  endpoints: string[];
  /** Of all keys; no slash at either end. */
  prefix: string;
  user: string | null;
  password: string | null;
  passwordFile: string | null;
  /** null: without TLS. */
  tls: { caFile: string | null; certFile: string | null; keyFile: string | null } | null;
}

const PREFIX_DEFAULT = 'rekindle';
const FORM = /^(etcds?):\/\/(?:([^@/?]*)@)?([^@/?]*)(?:\/([^?]*))?(?:\?(.*))?$/;

function refused(message: string): RekindleError {
  return new RekindleError('INVALID_ARGUMENT', message);
}

export function parseStorageUrl(url: string): EtcdAddress {
  const match = FORM.exec(url);
  if (match === null) {
    throw refused(
      'a storage is written etcd://host:port,host:port/prefix (etcds:// with TLS); --data ' +
        'names a folder instead',
    );
  }
  const [, scheme, userInfo, hosts = '', path = '', query = ''] = match;
  const endpoints = [...new Set(hosts.split(','))];
  for (const endpoint of endpoints) {
    const problem = addressProblem(endpoint);
    if (problem !== null) throw refused(`${problem} in the storage's address`);
  }
  const prefix = decoded(path).replace(/^\/+|\/+$/g, '');
  const address: EtcdAddress = {
    endpoints,
    prefix: prefix === '' ? PREFIX_DEFAULT : prefix,
    user: null,
    password: null,
    passwordFile: null,
    tls: scheme === 'etcds' ? { caFile: null, certFile: null, keyFile: null } : null,
  };
  if (userInfo !== undefined) readUser(address, userInfo);
  for (const [name, value] of new URLSearchParams(query)) readOption(address, name, value);
  if (address.tls !== null && (address.tls.certFile === null) !== (address.tls.keyFile === null)) {
    throw refused('"cert" and "key" go together in the storage\'s address');
  }
  if (address.user === null && address.passwordFile !== null) {
    throw refused('"passwordFile" needs a user in the storage\'s address');
  }
  return address;
}

function readUser(address: EtcdAddress, userInfo: string): void {
  const [user = '', ...password] = userInfo.split(':');
  if (user === '') throw refused("the user in the storage's address is empty");
  address.user = decoded(user);
  if (password.length > 0) address.password = decoded(password.join(':'));
}

function readOption(address: EtcdAddress, name: string, value: string): void {
  const { tls } = address;
  const files = { ca: 'caFile', cert: 'certFile', key: 'keyFile' } as const;
  if (value === '') throw refused(`option "${name}" of the storage's address is empty`);
  if (name === 'passwordFile') address.passwordFile = value;
  else if (name === 'ca' || name === 'cert' || name === 'key') {
    if (tls === null) throw refused(`option "${name}" is for etcds://, this is etcd://`);
    tls[files[name]] = value;
  } else throw refused(`unknown option "${name}" in the storage's address`);
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch (cause) {
    throw new RekindleError('INVALID_ARGUMENT', `"${text}" is not a part of a URL`, { cause });
  }
}
