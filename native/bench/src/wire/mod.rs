//! A load on a server over its own protocol, by one thread that does little else: what it reaches
//! is the server's ceiling, which a client in JavaScript would hide.
//!
//! Rule: the same loop drives all dialects, so that a ratio between two servers is one of servers.
//! Every connection has one message under way. They are served in turn with blocking reads: as
//! long as the server is the slower side, the next answer is there already.

mod memcached;
mod rekindle;
mod resp;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::figures::{figure, median};
use crate::limits::mix;

/// Longer than any server should need for one message.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const KEY_BYTES: usize = 16;
const READ_BYTES: usize = 64 * 1024;

/// What a message does to each of its objects.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Read,
    Write,
}

/// The load that is asked for; words `name=value` of the command line.
#[derive(Clone)]
struct Options {
    dialect: String,
    address: String,
    work: Work,
    connections: usize,
    /// Of one message.
    operations: usize,
    objects: u64,
    value_bytes: usize,
    /// Of Rekindle.
    table_id: u64,
    duration: Duration,
}

impl Options {
    fn parse(words: &[&str]) -> Result<Self, Failure> {
        let text = |name: &str| {
            let value = words
                .iter()
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            value.ok_or(Failure::Usage)
        };
        let number = |name: &str| -> Result<u64, Failure> {
            text(name)?.parse().map_err(|_| Failure::Usage)
        };
        Ok(Self {
            dialect: text("dialect")?.into(),
            address: text("address")?.into(),
            work: match text("work")? {
                "read" => Work::Read,
                "write" => Work::Write,
                _ => return Err(Failure::Usage),
            },
            connections: number("connections")? as usize,
            operations: number("operations")? as usize,
            objects: number("objects")?.max(1),
            value_bytes: number("value-bytes")? as usize,
            table_id: number("table")?,
            duration: Duration::from_millis(number("ms")?),
        })
    }
}

/// One side of a protocol: requests out, answers in.
trait Dialect {
    /// Whatever must be said before the first request.
    fn greet(&mut self, stream: &mut TcpStream) -> Result<(), Failure>;

    /// The next request; `object` names one at random.
    fn request(&mut self, object: &mut dyn FnMut() -> u64) -> &[u8];

    /// Length of the answer at the front and how many operations it says were done; `None` while
    /// it is incomplete.
    fn answer(&self, bytes: &[u8]) -> Result<Option<(usize, usize)>, Failure>;
}

/// The key of an object, as bench/dataset.ts makes it.
fn write_key(number: u64, key: &mut [u8]) {
    key[..7].copy_from_slice(b"object:");
    let mut rest = number;
    for digit in key[7..KEY_BYTES].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}

/// Of the protocols that are text.
fn wrong_answer(bytes: &[u8]) -> Failure {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
    Failure::Wrong(format!("the answer was {text:?}"))
}

struct Connection {
    stream: TcpStream,
    dialect: Box<dyn Dialect>,
    received: Vec<u8>,
    filled: usize,
    sent_at: Instant,
}

impl Connection {
    fn open(options: &Options, number: u64) -> Result<Self, Failure> {
        let mut stream = TcpStream::connect(&options.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let mut dialect: Box<dyn Dialect> = match options.dialect.as_str() {
            "rekindle" => Box::new(rekindle::Rekindle::new(options, mix(number))),
            "memcached" => Box::new(memcached::Memcached::new(options)),
            "resp" => Box::new(resp::Resp::new(options)),
            _ => return Err(Failure::Usage),
        };
        dialect.greet(&mut stream)?;
        Ok(Self {
            stream,
            dialect,
            received: vec![0; READ_BYTES],
            filled: 0,
            sent_at: Instant::now(),
        })
    }

    fn send(&mut self, object: &mut dyn FnMut() -> u64) -> Result<(), Failure> {
        self.sent_at = Instant::now();
        Ok(self.stream.write_all(self.dialect.request(object))?)
    }

    /// Waits for the answer; how many operations were done.
    fn receive(&mut self) -> Result<usize, Failure> {
        loop {
            if let Some((bytes, done)) = self.dialect.answer(&self.received[..self.filled])? {
                self.received.copy_within(bytes..self.filled, 0);
                self.filled -= bytes;
                return Ok(done);
            }
            if self.filled == self.received.len() {
                self.received.resize(self.filled * 2, 0);
            }
            let bytes = self.stream.read(&mut self.received[self.filled..])?;
            if bytes == 0 {
                return Err(Failure::Wrong(
                    "the server has closed the connection".into(),
                ));
            }
            self.filled += bytes;
        }
    }
}

/// Puts load on a server and prints what it did.
///
/// # Errors
/// A word is missing, the server cannot be reached, or it answers with an error.
pub fn measure(words: &[&str]) -> Result<(), Failure> {
    let options = Options::parse(words)?;
    let mut seed = std::process::id().into();
    let mut object = move || {
        seed += 1;
        mix(seed) % options.objects
    };
    let first: u64 = mix(u64::from(std::process::id()));
    let mut connections = (0..options.connections as u64)
        .map(|number| Connection::open(&options, first.wrapping_add(number)))
        .collect::<Result<Vec<_>, _>>()?;
    for connection in &mut connections {
        connection.send(&mut object)?;
    }
    let warm_up = Instant::now() + options.duration / 4;
    let (mut done, mut latencies) = (0, Vec::new());
    let mut start = None;
    'rounds: loop {
        for connection in &mut connections {
            done += connection.receive()?;
            let now = Instant::now();
            match start {
                None if now >= warm_up => {
                    (start, done) = (Some(now), 0);
                }
                Some(start) if now >= start + options.duration => break 'rounds,
                Some(_) => latencies.push((now - connection.sent_at).as_secs_f64() * 1e6),
                None => {}
            }
            connection.send(&mut object)?;
        }
    }
    let seconds = start.map_or(0.0, |start| start.elapsed().as_secs_f64());
    figure("rate", "operations/s", done as f64 / seconds)?;
    figure("message-p50", "µs", median(&latencies))?;
    latencies.sort_by(f64::total_cmp);
    figure("message-p99", "µs", latencies[latencies.len() * 99 / 100])
}
