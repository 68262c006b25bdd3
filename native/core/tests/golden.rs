//! The vectors of `test/golden`, checked against the native core: what it writes must be these
//! bytes, what it reads must be these fields. `test/unit/golden-*.test.ts` checks the same files
//! with other implementations of the checksum and of the decoders.

mod backup_support;

use backup_support::{Directory, Disk, options, partition, tablet};
use rekindle_core::backup::Identity;
use rekindle_core::backup::directory::{
    Directory as FrameDirectory, Piece, Tenant, encode_directory,
};
use rekindle_core::backup::frame::{
    BLOCK_BYTES, CertificateBlock, Codec, FrameState, SLOT_BYTES, SlotContent, decode_slot,
    encode_slot,
};
use rekindle_core::backup::lz4_image;
use rekindle_core::backup::split::{PIECE_HEADER_BYTES, PartitionMap, split};
use rekindle_core::backup::superblock::{Superblock, SuperblockFiles};
use rekindle_core::crc32c::crc32c;
use rekindle_core::entry::{
    EntryHeader, EntryIterator, EntryType, EntryView, FLAG_MORE, SEGMENT_BYTES, write_entry,
};
use rekindle_core::key_hash::{key_hash, slot};
use rekindle_core::master::message::{OperationKind, Reply, Request};
use rekindle_core::status::Status;
use serde_json::Value;

fn golden(name: &str) -> Value {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../test/golden");
    let text = std::fs::read_to_string(format!("{folder}/{name}.json")).expect("a vector file");
    serde_json::from_str(&text).expect("JSON")
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    let found = value[name].as_array().expect("a list");
    assert!(!found.is_empty(), "{name} has vectors");
    found
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().expect("a text")
}

/// A number, or one above 2^53 in a string.
fn number(value: &Value, name: &str) -> u64 {
    let field = &value[name];
    let parsed = field.as_str().map(|digits| digits.parse().expect("digits"));
    parsed.or(field.as_u64()).expect("a number")
}

fn unhex(digits: &str) -> Vec<u8> {
    let pairs = (0..digits.len()).step_by(2);
    pairs
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex"))
        .collect()
}

fn bytes(value: &Value, name: &str) -> Vec<u8> {
    unhex(text(value, name))
}

fn patched(value: &Value, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    for patch in list(value, "patches") {
        let (at, piece) = (number(patch, "at") as usize, bytes(patch, "bytes"));
        out[at..at + piece.len()].copy_from_slice(&piece);
    }
    out
}

fn entry_type(name: &str) -> EntryType {
    match name {
        "SEGMENT_HEADER" => EntryType::SegmentHeader,
        "OBJECT" => EntryType::Object,
        "TOMBSTONE" => EntryType::Tombstone,
        "LOG_DIGEST" => EntryType::LogDigest,
        "SAFE_VERSION" => EntryType::SafeVersion,
        "TABLE_STATS" => EntryType::TableStats,
        "PADDING" => EntryType::Padding,
        "NOTE" => EntryType::Note,
        other => panic!("unknown type {other}"),
    }
}

/// The prior segments: decimal strings.
fn prior(fields: &Value) -> Vec<u64> {
    let ids = fields["prior"].as_array().expect("a list").iter();
    ids.map(|id| id.as_str().expect("a text").parse().expect("digits"))
        .collect()
}

fn append(out: &mut Vec<u8>, fields: &Value) {
    let more = fields["more"].as_bool().expect("a flag");
    let header = EntryHeader {
        entry_type: entry_type(text(fields, "type")),
        flags: if more { FLAG_MORE } else { 0 },
        timestamp: number(fields, "timestamp") as u32,
        table_id: number(fields, "tableId"),
        version: number(fields, "version"),
    };
    let start = out.len();
    out.resize(start + 2048, 0xff);
    let (key, value) = (bytes(fields, "key"), bytes(fields, "value"));
    let length = write_entry(&mut out[start..], &header, &prior(fields), &key, &value);
    out.truncate(start + length);
}

fn check_entry(entry: &EntryView<'_>, fields: &Value) {
    entry.verify().expect("checksum");
    assert_eq!(entry.entry_type(), entry_type(text(fields, "type")));
    assert_eq!(Some(entry.more()), fields["more"].as_bool());
    assert_eq!(u64::from(entry.timestamp()), number(fields, "timestamp"));
    assert_eq!(entry.table_id(), number(fields, "tableId"));
    assert_eq!(entry.version(), number(fields, "version"));
    assert_eq!(entry.prior().collect::<Vec<_>>(), prior(fields));
    assert_eq!(entry.key(), bytes(fields, "key"));
    assert_eq!(entry.value(), bytes(fields, "value"));
}

#[test]
fn key_hashes() {
    for vector in list(&golden("key-hash"), "vectors") {
        let key = if vector["keyRepeat"].is_object() {
            let repeat = &vector["keyRepeat"];
            vec![number(repeat, "byte") as u8; number(repeat, "count") as usize]
        } else {
            bytes(vector, "key")
        };
        let hash = key_hash(number(vector, "tableId"), &key);
        assert_eq!(format!("0x{hash:016x}"), text(vector, "hash"));
        assert_eq!(u64::from(slot(hash)), number(vector, "slot"));
    }
}

#[test]
fn entries() {
    let file = golden("entries");
    for vector in list(&file, "vectors") {
        let expected = bytes(vector, "bytes");
        let mut written = Vec::new();
        append(&mut written, vector);
        assert_eq!(written, expected);
        let entry = EntryView::parse(&expected).expect("parses");
        check_entry(&entry, vector);
        assert_eq!(entry.total_bytes(), expected.len());
    }
    for vector in list(&file, "refused") {
        let refused = bytes(vector, "bytes");
        let found = EntryView::parse(&refused).and_then(|entry| entry.verify());
        assert!(found.is_err(), "{}", text(vector, "why"));
    }
}

#[test]
fn a_segment_and_its_certificates() {
    let file = golden("segment");
    let expected = bytes(&file, "bytes");
    let mut written = Vec::new();
    for fields in list(&file, "entries") {
        append(&mut written, fields);
    }
    assert_eq!(written, expected);
    for name in ["opening", "certificate"] {
        let length = number(&file[name], "length") as usize;
        let checksum = u64::from(crc32c(&expected[..length]));
        assert_eq!(checksum, number(&file[name], "checksum"), "{name}");
    }
    let read: Vec<_> = EntryIterator::new(&expected)
        .map(|item| item.expect("parses").1)
        .collect();
    assert_eq!(read.len(), list(&file, "entries").len());
    for (entry, fields) in read.iter().zip(list(&file, "entries")) {
        check_entry(entry, fields);
    }
}

fn split_golden(source: &[u8], vectors: &[Value]) -> Vec<Vec<u8>> {
    let partitions: Vec<_> = vectors
        .iter()
        .map(|vector| {
            let tablets = list(vector, "tablets").iter().map(|one| {
                let (start, end) = (number(one, "startSlot"), number(one, "endSlot"));
                tablet(number(one, "tableId"), start as u32, end as u32, 0)
            });
            partition(number(vector, "partitionId"), tablets.collect())
        })
        .collect();
    let map = PartitionMap::new(&partitions).expect("disjoint");
    split(source, 5, &map).expect("splits")
}

#[test]
fn recovery_segments() {
    let source = bytes(&golden("segment"), "bytes");
    let file = golden("recovery-segment");
    let vectors = list(&file, "partitions");
    let pieces = split_golden(&source, vectors);
    for (piece, vector) in pieces.iter().zip(vectors) {
        assert_eq!(piece, &bytes(vector, "bytes"));
        let certified = number(&vector["certificate"], "length") as usize;
        assert_eq!(piece.len() - PIECE_HEADER_BYTES, certified);
    }
}

/// The core has no code for message headers, which the transport handles: only the layout.
#[test]
fn message_headers() {
    for vector in list(&golden("header"), "vectors") {
        let mut expected = 0x4b52u16.to_le_bytes().to_vec();
        expected.extend([1, number(vector, "kind") as u8]);
        expected.extend((number(vector, "opcode") as u16).to_le_bytes());
        expected.extend((number(vector, "status") as u16).to_le_bytes());
        expected.extend((number(vector, "callId") as u32).to_le_bytes());
        expected.extend((number(vector, "deadlineMs") as u32).to_le_bytes());
        assert_eq!(expected, bytes(vector, "bytes"));
    }
}

#[test]
fn execute_requests() {
    let file = golden("execute");
    let vector = &file["request"];
    let body = bytes(vector, "bytes");
    let request = Request::parse(&body).expect("parses");
    assert_eq!(request.client_id, number(vector, "clientId"));
    assert_eq!(request.ack_id, number(vector, "ackId"));
    let operations: Vec<_> = request.operations().collect();
    assert_eq!(operations.len(), list(vector, "operations").len());
    for (operation, fields) in operations.iter().zip(list(vector, "operations")) {
        let kind = match number(fields, "op") {
            1 => OperationKind::Read,
            2 => OperationKind::Write,
            _ => OperationKind::Remove,
        };
        assert_eq!(operation.kind, kind);
        assert_eq!(u64::from(operation.reject), number(fields, "reject"));
        assert_eq!(operation.table_id, number(fields, "tableId"));
        assert_eq!(operation.rpc_id, number(fields, "rpcId"));
        assert_eq!(operation.given_version, number(fields, "givenVersion"));
        assert_eq!(operation.key, bytes(fields, "key"));
        assert_eq!(
            operation.value,
            unhex(fields["value"].as_str().unwrap_or(""))
        );
    }
}

#[test]
fn execute_replies() {
    let file = golden("execute");
    let vector = &file["reply"];
    let results = list(vector, "results");
    let mut out = vec![0xff; 4096];
    let mut reply = Reply::new(&mut out, results.len()).expect("has room");
    for result in results {
        let code = number(result, "status");
        let statuses = [
            Status::Ok,
            Status::WrongVersion,
            Status::Retry,
            Status::ObjectExists,
        ];
        let status = statuses.into_iter().find(|one| *one as u64 == code);
        let retry_after_ms = number(result, "retryAfterMs") as u16;
        let status = status.expect("a status of this list");
        reply.push(
            status,
            retry_after_ms,
            number(result, "version"),
            &bytes(result, "value"),
        );
    }
    let length = reply.finish();
    assert_eq!(out[..length], bytes(vector, "bytes"));
}

#[test]
fn backup_writes_make_a_closed_replica() {
    let segment = bytes(&golden("segment"), "bytes");
    let file = golden("backup-write");
    let (master_id, segment_id) = (number(&file, "masterId"), number(&file, "segmentId"));
    let directory = Directory::new();
    let mut disk = Disk::open(&directory, options(&directory, 4, false));
    for write in list(&file, "writes") {
        let (offset, end) = (number(write, "offset"), number(write, "end"));
        let mut body = bytes(write, "header");
        body.extend_from_slice(&segment[offset as usize..end as usize]);
        assert_eq!(disk.raw(&body), Status::Ok);
    }
    assert_eq!(disk.read(master_id, segment_id), Ok(segment));
}

#[test]
fn superblocks() {
    for vector in list(&golden("superblock"), "vectors") {
        let cluster_id = vector["clusterId"].as_str();
        let fenced = vector["fenced"].as_array().expect("a list");
        let superblock = Superblock {
            sequence: number(vector, "sequence"),
            identity: cluster_id.map(|cluster_id| Identity {
                cluster_id: cluster_id.to_owned(),
                server_id: number(vector, "serverId"),
            }),
            fenced: fenced.iter().filter_map(Value::as_u64).collect(),
        };
        let directory = Directory::new();
        let files = SuperblockFiles::new(directory.path());
        files.write(&superblock).expect("writes");
        let name = format!("superblock-{}", superblock.sequence % 2);
        let written = std::fs::read(directory.path().join(name)).expect("was written");
        assert!(written == patched(vector, number(vector, "length") as usize));
        assert_eq!(files.load(), Ok(Some(superblock)));
    }
}

#[test]
fn frame_slots() {
    for vector in list(&golden("frame-slot"), "vectors") {
        let certificate = CertificateBlock {
            sequence: number(vector, "sequence"),
            master_id: number(vector, "masterId"),
            segment_id: number(vector, "segmentId"),
            epoch: number(vector, "epoch"),
            length: number(vector, "length") as u32,
            checksum: number(vector, "checksum") as u32,
            state: match text(vector, "state") {
                "open" => FrameState::Open,
                "ahead" => FrameState::Ahead,
                "closed" => FrameState::Closed,
                _ => FrameState::Free,
            },
            primary: vector["primary"].as_bool().expect("a flag"),
            codec: if text(vector, "codec") == "lz4" {
                Codec::Lz4
            } else {
                Codec::Raw
            },
            stored: number(vector, "stored") as u32,
        };
        let expected = patched(vector, SLOT_BYTES);
        let mut written = vec![0xff; SLOT_BYTES];
        encode_slot(&certificate, &bytes(vector, "tail"), &mut written);
        assert!(written == expected, "sequence {}", certificate.sequence);
        assert_eq!(decode_slot(&expected), SlotContent::Valid(certificate));
    }
}

#[test]
fn frame_directories() {
    for vector in list(&golden("frame-directory"), "vectors") {
        let tenant = |row: &Value| Tenant {
            master_id: number(row, "masterId"),
            segment_id: number(row, "segmentId"),
            epoch: number(row, "epoch"),
            length: number(row, "length") as u32,
            checksum: number(row, "checksum") as u32,
            stored: number(row, "stored") as u32,
            primary: row["primary"].as_bool().expect("a flag"),
            units: number(row, "units") as u8,
            next: row["next"].is_object().then(|| Piece {
                frame: number(&row["next"], "frame") as u32,
                units: number(&row["next"], "units") as u8,
            }),
        };
        let directory = FrameDirectory {
            sequence: number(vector, "sequence"),
            tenants: list(vector, "tenants").iter().map(tenant).collect(),
        };
        let mut slot = patched(vector, SLOT_BYTES);
        let mut written = vec![0xff; BLOCK_BYTES];
        encode_directory(&directory, &mut written);
        assert!(written == slot[..BLOCK_BYTES]);
        // What an earlier replica left in the tail block means nothing.
        slot[BLOCK_BYTES..].fill(0xee);
        assert_eq!(decode_slot(&slot), SlotContent::Shared(directory));
    }
}

/// Another compressor's image is read; the own one is read back, its bytes are the compressor's.
#[test]
fn lz4_images() {
    let vector = golden("lz4-image");
    let rest = bytes(&vector, "rest");
    let mut raw = bytes(&vector, "unit").repeat(number(&vector, "repeat") as usize);
    let raw_length = number(&vector, "rawLength") as usize;
    raw.resize(raw_length - rest.len(), number(&vector, "fill") as u8);
    raw.extend(rest);
    assert_eq!(u64::from(crc32c(&raw)), number(&vector, "checksum"));
    let mut out = vec![0; raw_length];
    lz4_image::decode(&bytes(&vector, "image"), &mut out).expect("decodes");
    assert!(out == raw);
    let mut image = vec![0; SEGMENT_BYTES];
    let stored = lz4_image::encode(&raw, &mut image).expect("pays");
    out.fill(0);
    lz4_image::decode(&image[..stored], &mut out).expect("decodes");
    assert!(out == raw);
}

#[test]
fn coordinator_state_copies() {
    let vector = golden("coordinator-state");
    let copy: Value = serde_json::from_str(text(&vector, "file")).expect("JSON");
    let checksum = crc32c(text(&copy, "state").as_bytes());
    assert_eq!(u64::from(checksum), number(&copy, "crc32c"));
    assert_eq!(copy["crc32c"], vector["crc32c"]);
    assert_eq!(copy["revision"], vector["revision"]);
}

fn hex(bytes: &[u8]) -> Value {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Value::String(digits.concat())
}

fn save(name: &str, file: &Value) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../test/golden");
    let text = serde_json::to_string_pretty(file).expect("JSON") + "\n";
    std::fs::write(format!("{folder}/{name}.json"), text).expect("writes");
}

fn list_mut<'a>(value: &'a mut Value, name: &str) -> &'a mut Vec<Value> {
    value[name].as_array_mut().expect("a list")
}

/// Writes the bytes and checksums of the log's vectors anew from their fields, after a change of
/// the format: `cargo test -p rekindle-core --test golden -- --ignored` and then
/// `npx biome format --write test/golden`. The other side checks what came out.
#[test]
#[ignore = "changes test/golden"]
fn write_the_vectors_of_the_log() {
    let mut entries = golden("entries");
    for vector in list_mut(&mut entries, "vectors") {
        let mut written = Vec::new();
        append(&mut written, vector);
        vector["bytes"] = hex(&written);
    }
    save("entries", &entries);
    let mut segment = golden("segment");
    let mut source = Vec::new();
    for fields in list(&segment, "entries") {
        append(&mut source, fields);
    }
    segment["bytes"] = hex(&source);
    for name in ["opening", "certificate"] {
        let length = number(&segment[name], "length") as usize;
        segment[name]["checksum"] = crc32c(&source[..length]).into();
    }
    save("segment", &segment);
    let mut recovery = golden("recovery-segment");
    let pieces = split_golden(&source, list(&recovery, "partitions"));
    for (vector, piece) in list_mut(&mut recovery, "partitions").iter_mut().zip(pieces) {
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| piece[at + byte]));
        vector["certificate"]["length"] = word(0).into();
        vector["certificate"]["checksum"] = word(4).into();
        vector["bytes"] = hex(&piece);
    }
    save("recovery-segment", &recovery);
    let mut backup_write = golden("backup-write");
    for write in list_mut(&mut backup_write, "writes") {
        if write["certified"] == true {
            let checksum = crc32c(&source[..number(write, "end") as usize]);
            let mut header = bytes(write, "header");
            header[36..40].copy_from_slice(&checksum.to_le_bytes());
            write["header"] = hex(&header);
            write["checksum"] = checksum.into();
        }
    }
    save("backup-write", &backup_write);
}
