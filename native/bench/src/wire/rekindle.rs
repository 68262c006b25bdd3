//! Rekindle's protocol (docs/formats.md §3): EXECUTE messages in binary frames of a WebSocket.

use std::io::{Read, Write};
use std::net::TcpStream;

use rekindle_core::status::Status;

use super::{Dialect, KEY_BYTES, Options, Work, write_key};
use crate::Failure;

const FRAME_HEADER_BYTES_MAX: usize = 14;
const MESSAGE_HEADER_BYTES: usize = 16;
const EXECUTE_HEADER_BYTES: usize = 24;
const OPERATION_HEADER_BYTES: usize = 32;
const REPLY_HEADER_BYTES: usize = 8;
const RESULT_HEADER_BYTES: usize = 16;
const OPCODE_HELLO: u16 = 0x01;
const OPCODE_EXECUTE: u16 = 0x40;
const KIND_REPLY: u8 = 1;
const OP_READ: u8 = 1;
const OP_WRITE: u8 = 2;
/// Final, binary.
const FRAME_KIND: u8 = 0x82;
const MASKED: u8 = 0x80;
const GREETING_BYTES_MAX: usize = 4096;
const HELLO: &str = r#"{"protocol":{"min":1,"max":1},"features":[],"role":"client","#;
const HELLO_END: &str =
    r#""clusterId":null,"serverId":null,"expectServerId":null,"credential":null}"#;

pub struct Rekindle {
    client_id: u64,
    work: Work,
    operations: usize,
    operation_bytes: usize,
    /// A frame that is made once: only keys and rpc ids change.
    frame: Vec<u8>,
    body_at: usize,
    rpc_id_last: u64,
}

/// A frame around a message, masked with zero; and where the message begins.
fn framed(message: &[u8]) -> (Vec<u8>, usize) {
    let mut frame = vec![FRAME_KIND];
    match message.len() {
        short @ 0..126 => frame.push(MASKED | short as u8),
        middle @ 126..65_536 => {
            frame.push(MASKED | 126);
            frame.extend_from_slice(&(middle as u16).to_be_bytes());
        }
        long => {
            frame.push(MASKED | 127);
            frame.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    let at = frame.len();
    frame.extend_from_slice(message);
    (frame, at)
}

fn message(opcode: u16, body: &[u8]) -> Vec<u8> {
    let mut message = vec![b'R', b'K', 1, 0];
    message.extend_from_slice(&opcode.to_le_bytes());
    message.extend_from_slice(&0u16.to_le_bytes());
    message.extend_from_slice(&1u32.to_le_bytes());
    message.extend_from_slice(&0u32.to_le_bytes());
    message.extend_from_slice(body);
    message
}

/// Where the payload of the frame at the front begins and ends; `None` while it is incomplete.
fn payload(bytes: &[u8]) -> Result<Option<(usize, usize)>, Failure> {
    if bytes.len() < FRAME_HEADER_BYTES_MAX {
        return Ok(None); // no answer is as short
    }
    if bytes[0] != FRAME_KIND {
        return Err(Failure::Wrong(format!(
            "a frame began with {:#x}",
            bytes[0]
        )));
    }
    let (at, length) = match bytes[1] {
        126 => (4, u64::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
        127 => {
            let field = bytes[2..10].try_into().expect("eight bytes");
            (10, u64::from_be_bytes(field))
        }
        short => (2, u64::from(short)),
    };
    let end = at + length as usize;
    Ok((end <= bytes.len()).then_some((at, end)))
}

impl Rekindle {
    pub fn new(options: &Options, client_id: u64) -> Self {
        let value_bytes = match options.work {
            Work::Read => 0,
            Work::Write => options.value_bytes,
        };
        let operation_bytes =
            (OPERATION_HEADER_BYTES + KEY_BYTES + value_bytes).next_multiple_of(8);
        let mut body = vec![0; EXECUTE_HEADER_BYTES + options.operations * operation_bytes];
        body[16..20].copy_from_slice(&(options.operations as u32).to_le_bytes());
        for operation in body[EXECUTE_HEADER_BYTES..].chunks_exact_mut(operation_bytes) {
            operation[0] = match options.work {
                Work::Read => OP_READ,
                Work::Write => OP_WRITE,
            };
            operation[2..4].copy_from_slice(&(KEY_BYTES as u16).to_le_bytes());
            operation[4..8].copy_from_slice(&(value_bytes as u32).to_le_bytes());
            operation[8..16].copy_from_slice(&options.table_id.to_le_bytes());
            let value_at = OPERATION_HEADER_BYTES + KEY_BYTES;
            operation[value_at..value_at + value_bytes].fill(b'v');
        }
        let (frame, at) = framed(&message(OPCODE_EXECUTE, &body));
        Self {
            // Below 2^53, as JavaScript's are.
            client_id: (client_id >> 11).max(1),
            work: options.work,
            operations: options.operations,
            operation_bytes,
            frame,
            body_at: at + MESSAGE_HEADER_BYTES,
            rpc_id_last: 0,
        }
    }
}

impl Dialect for Rekindle {
    fn greet(&mut self, stream: &mut TcpStream) -> Result<(), Failure> {
        let upgrade = "GET / HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\n\
            Connection: Upgrade\r\nSec-WebSocket-Key: cmVraW5kbGUtYmVuY2gtMQ==\r\n\
            Sec-WebSocket-Version: 13\r\n\r\n";
        stream.write_all(upgrade.as_bytes())?;
        let mut response = Vec::new();
        while !response.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            response.push(byte[0]);
            if response.len() > GREETING_BYTES_MAX {
                return Err(Failure::Wrong("the server does not speak WebSocket".into()));
            }
        }
        let hello = message(OPCODE_HELLO, format!("{HELLO}{HELLO_END}").as_bytes());
        stream.write_all(&framed(&hello).0)?;
        let (mut received, mut filled) = (vec![0; GREETING_BYTES_MAX], 0);
        loop {
            let bytes = stream.read(&mut received[filled..])?;
            filled += bytes;
            if let Some((at, end)) = payload(&received[..filled])? {
                if received[at + 3] == KIND_REPLY && end == filled {
                    return Ok(());
                }
                return Err(Failure::Wrong("the server has refused HELLO".into()));
            }
            if bytes == 0 {
                return Err(Failure::Wrong(
                    "the server has closed the connection".into(),
                ));
            }
        }
    }

    fn request(&mut self, object: &mut dyn FnMut() -> u64) -> &[u8] {
        let body = &mut self.frame[self.body_at..];
        body[0..8].copy_from_slice(&self.client_id.to_le_bytes());
        body[8..16].copy_from_slice(&self.rpc_id_last.to_le_bytes());
        for operation in body[EXECUTE_HEADER_BYTES..].chunks_exact_mut(self.operation_bytes) {
            if self.work == Work::Write {
                self.rpc_id_last += 1;
                operation[16..24].copy_from_slice(&self.rpc_id_last.to_le_bytes());
            }
            let key_end = OPERATION_HEADER_BYTES + KEY_BYTES;
            write_key(object(), &mut operation[OPERATION_HEADER_BYTES..key_end]);
        }
        &self.frame
    }

    /// Refused operations (`RETRY`: the cleaner is behind) are not counted as done.
    fn answer(&self, bytes: &[u8]) -> Result<Option<(usize, usize)>, Failure> {
        let Some((at, end)) = payload(bytes)? else {
            return Ok(None);
        };
        let message = &bytes[at..end];
        if message[3] != KIND_REPLY {
            let why = String::from_utf8_lossy(&message[MESSAGE_HEADER_BYTES..]).into_owned();
            return Err(Failure::Wrong(format!("the server answered {why}")));
        }
        let mut result = &message[MESSAGE_HEADER_BYTES + REPLY_HEADER_BYTES..];
        let mut done = 0;
        for _ in 0..self.operations {
            let status = u16::from_le_bytes([result[0], result[1]]);
            if status == Status::Ok as u16 {
                done += 1;
            } else if status != Status::Retry as u16 {
                return Err(Failure::Wrong(format!(
                    "an operation ended with status {status}"
                )));
            }
            let value = result[4..8].try_into().expect("four bytes");
            let value_bytes = (u32::from_le_bytes(value) as usize).next_multiple_of(8);
            result = &result[RESULT_HEADER_BYTES + value_bytes..];
        }
        Ok(Some((end, done)))
    }
}
