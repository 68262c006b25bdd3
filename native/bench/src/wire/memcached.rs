//! memcached's text protocol: `get` of one or several keys, `set` of one. Several writes are as
//! many commands in one message.

use std::io::Write;
use std::net::TcpStream;

use super::resp::line;
use super::{Dialect, KEY_BYTES, Options, Work, write_key, wrong_answer};
use crate::Failure;

const STORED: &[u8] = b"STORED\r\n";
const END: &[u8] = b"END\r\n";

pub struct Memcached {
    work: Work,
    operations: usize,
    value_bytes: usize,
    request: Vec<u8>,
}

impl Memcached {
    pub fn new(options: &Options) -> Self {
        Self {
            work: options.work,
            operations: options.operations,
            value_bytes: options.value_bytes,
            request: Vec::new(),
        }
    }

    fn stored(&self, bytes: &[u8]) -> Result<Option<(usize, usize)>, Failure> {
        let wanted = STORED.len() * self.operations;
        for (index, each) in bytes.chunks(STORED.len()).take(self.operations).enumerate() {
            if !STORED.starts_with(each) {
                return Err(wrong_answer(&bytes[index * STORED.len()..]));
            }
        }
        Ok((bytes.len() >= wanted).then_some((wanted, self.operations)))
    }

    /// One for each key, also if it is asked for twice: `VALUE <key> <flags> <bytes>`, the value.
    fn values(&self, bytes: &[u8]) -> Result<Option<(usize, usize)>, Failure> {
        let head_end = format!(" {}", self.value_bytes);
        let mut at = 0;
        for _ in 0..self.operations {
            let Some((head, next)) = line(&bytes[at..]) else {
                return Ok(None);
            };
            if !head.starts_with(b"VALUE ") || !head.ends_with(head_end.as_bytes()) {
                return Err(wrong_answer(&bytes[at..]));
            }
            at += next + self.value_bytes + 2;
            if at > bytes.len() {
                return Ok(None);
            }
        }
        let end = &bytes[at..bytes.len().min(at + END.len())];
        if !END.starts_with(end) {
            return Err(wrong_answer(end));
        }
        Ok((end.len() == END.len()).then_some((at + END.len(), self.operations)))
    }
}

impl Dialect for Memcached {
    fn greet(&mut self, _stream: &mut TcpStream) -> Result<(), Failure> {
        Ok(())
    }

    fn request(&mut self, object: &mut dyn FnMut() -> u64) -> &[u8] {
        let out = &mut self.request;
        out.clear();
        if self.work == Work::Read {
            out.extend_from_slice(b"get");
        }
        for _ in 0..self.operations {
            let mut key = [0; KEY_BYTES];
            write_key(object(), &mut key);
            out.extend_from_slice(match self.work {
                Work::Read => b" ",
                Work::Write => b"set ",
            });
            out.extend_from_slice(&key);
            if self.work == Work::Write {
                write!(out, " 0 0 {}\r\n", self.value_bytes).expect("memory takes all");
                out.resize(out.len() + self.value_bytes, b'v');
                out.extend_from_slice(b"\r\n");
            }
        }
        if self.work == Work::Read {
            out.extend_from_slice(b"\r\n");
        }
        out
    }

    fn answer(&self, bytes: &[u8]) -> Result<Option<(usize, usize)>, Failure> {
        match self.work {
            Work::Read => self.values(bytes),
            Work::Write => self.stored(bytes),
        }
    }
}
