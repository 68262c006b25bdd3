//! RESP, the protocol of Redis and Valkey: GET and SET of single objects, MGET and MSET of several.

use std::io::Write;
use std::net::TcpStream;

use super::{Dialect, KEY_BYTES, Options, Work, write_key, wrong_answer};
use crate::Failure;

pub struct Resp {
    work: Work,
    operations: usize,
    value_bytes: usize,
    request: Vec<u8>,
}

impl Resp {
    pub fn new(options: &Options) -> Self {
        Self {
            work: options.work,
            operations: options.operations,
            value_bytes: options.value_bytes,
            request: Vec::new(),
        }
    }
}

/// The line at the front without its end, and where the next begins.
pub(super) fn line(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    Some((&bytes[..end], end + 2))
}

impl Dialect for Resp {
    fn greet(&mut self, _stream: &mut TcpStream) -> Result<(), Failure> {
        Ok(())
    }

    fn request(&mut self, object: &mut dyn FnMut() -> u64) -> &[u8] {
        let (command, words) = match (self.work, self.operations) {
            (Work::Read, 1) => ("GET", 2),
            (Work::Read, count) => ("MGET", 1 + count),
            (Work::Write, 1) => ("SET", 3),
            (Work::Write, count) => ("MSET", 1 + 2 * count),
        };
        let out = &mut self.request;
        out.clear();
        let head = format!("*{words}\r\n${}\r\n{command}\r\n", command.len());
        out.extend_from_slice(head.as_bytes());
        for _ in 0..self.operations {
            let mut key = [0; KEY_BYTES];
            write_key(object(), &mut key);
            out.extend_from_slice(b"$16\r\n");
            out.extend_from_slice(&key);
            out.extend_from_slice(b"\r\n");
            if self.work == Work::Write {
                write!(out, "${}\r\n", self.value_bytes).expect("memory takes all");
                out.resize(out.len() + self.value_bytes, b'v');
                out.extend_from_slice(b"\r\n");
            }
        }
        out
    }

    fn answer(&self, bytes: &[u8]) -> Result<Option<(usize, usize)>, Failure> {
        let Some((first, mut at)) = line(bytes) else {
            return Ok(None);
        };
        if self.work == Work::Write {
            let answered = (first == b"+OK").then_some(Some((at, self.operations)));
            return answered.ok_or_else(|| wrong_answer(bytes));
        }
        if self.operations > 1 && first != format!("*{}", self.operations).as_bytes() {
            return Err(wrong_answer(bytes));
        }
        let value_head = format!("${}", self.value_bytes);
        for index in 0..self.operations {
            if self.operations > 1 || index > 0 {
                let Some((head, next)) = line(&bytes[at..]) else {
                    return Ok(None);
                };
                if head != value_head.as_bytes() {
                    return Err(wrong_answer(&bytes[at..]));
                }
                at += next;
            } else if first != value_head.as_bytes() {
                return Err(wrong_answer(bytes));
            }
            at += self.value_bytes + 2;
            if at > bytes.len() {
                return Ok(None);
            }
        }
        Ok(Some((at, self.operations)))
    }
}
