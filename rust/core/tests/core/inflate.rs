//! Inflating with helpers: the same as flate2 does, whatever the bytes are.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use flate2::{Compress, Compression, Crc, FlushCompress, GzBuilder};
use lamella_core::cores::Cores;
use lamella_core::inflate::Gzip;
use proptest::prelude::*;

/// Cores of the machines, with no helper, one, two and six.
const MACHINES: [usize; 4] = [1, 3, 4, 8];
/// Small, so that little data makes many pieces.
const PIECE: usize = 4096;

type Verdict = Result<Vec<u8>, io::ErrorKind>;

fn read(mut reader: impl Read) -> Verdict {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map(|_| bytes).map_err(|error| error.kind())
}

fn serial(blob: &[u8]) -> Verdict {
    read(MultiGzDecoder::new(blob))
}

/// With helpers; what they inflated, too.
fn helped(reader: impl BufRead, cores: usize, piece: usize) -> (Verdict, u64) {
    let mut gzip = Gzip::in_pieces(reader, Cores::new(cores).begin(), piece);
    (read(&mut gzip), gzip.helped())
}

/// Every machine's verdict is the serial one; give that back.
fn check(name: &str, blob: &[u8]) -> Verdict {
    let expected = serial(blob);
    for cores in MACHINES {
        let (verdict, _) = helped(blob, cores, PIECE);
        assert!(verdict == expected, "{name}, {cores} cores: {}", differ(&verdict, &expected));
    }
    expected
}

fn differ(found: &Verdict, expected: &Verdict) -> String {
    match (found, expected) {
        (Ok(found), Ok(expected)) => {
            let at = found.iter().zip(expected).position(|(a, b)| a != b);
            format!("{} bytes for {}, the first other one is {at:?}", found.len(), expected.len())
        }
        (found, expected) => format!("{:?} for {:?}", found.as_ref().map(Vec::len), expected.as_ref().map(Vec::len)),
    }
}

fn noise(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Words, as in a text: they are found again at all distances.
fn text(length: usize) -> Vec<u8> {
    let order = noise(length / 2, 7);
    let words: Vec<Vec<u8>> =
        (0..200).map(|n| noise(2 + n % 9, n as u32).iter().map(|b| b'a' + b % 26).collect()).collect();
    let mut text: Vec<u8> = order
        .chunks(2)
        .flat_map(|pair| [&words[(pair[0] as usize * 7 + pair[1] as usize) % 200][..], b" "].concat())
        .collect();
    text.truncate(length);
    text
}

/// Data of all kinds.
fn samples() -> &'static [(&'static str, Vec<u8>)] {
    static SAMPLES: OnceLock<Vec<(&str, Vec<u8>)>> = OnceLock::new();
    SAMPLES.get_or_init(make_samples)
}

fn make_samples() -> Vec<(&'static str, Vec<u8>)> {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let mixed: Vec<u8> = (0..20)
        .flat_map(|n| {
            if n % 3 == 0 {
                noise(9000, n)
            } else if n % 3 == 1 {
                vec![n as u8; 20_000]
            } else {
                text(17_000)
            }
        })
        .collect();
    vec![
        ("empty", Vec::new()),
        ("one byte", vec![7]),
        ("text", text(300_000)),
        ("program", program[program.len() / 2..][..300_000].to_vec()),
        ("noise", noise(100_000, 1)),
        ("few symbols", noise(200_000, 2).iter().map(|byte| byte & 3).collect()),
        ("zeros", vec![0; 1_000_000]),
        ("compressed", gzip(&text(300_000), 6)),
        ("mixed", mixed),
    ]
}

fn gzip(data: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// A member around a deflate stream that may be wrong.
fn member(deflated: &[u8], data: &[u8]) -> Vec<u8> {
    let mut crc = Crc::new();
    crc.update(data);
    let head = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    [&head[..], deflated, &crc.sum().to_le_bytes(), &crc.amount().to_le_bytes()].concat()
}

fn deflate(compress: &mut Compress, data: &[u8], flush: FlushCompress) -> Vec<u8> {
    let mut deflated = Vec::with_capacity(data.len() + 1000);
    compress.compress_vec(data, &mut deflated, flush).unwrap();
    deflated
}

#[test]
fn data_of_all_kinds_and_levels_comes_out_as_it_went_in() {
    for (name, data) in samples() {
        for level in [0, 1, 3, 4, 6, 9] {
            let verdict = check(&format!("{name}, level {level}"), &gzip(data, level));
            assert!(verdict == Ok(data.clone()), "{name} {level}");
        }
    }
}

#[test]
fn helpers_do_most_of_the_work() {
    let data = text(4_000_000);
    let blob = gzip(&data, 6);
    let (verdict, bytes) = helped(&blob[..], 4, 64 << 10);
    assert!(verdict == Ok(data.clone()));
    assert!(bytes > data.len() as u64 / 4, "{bytes} bytes");
    assert_eq!(helped(&blob[..], 2, 64 << 10), (Ok(data), 0), "two cores have none to spare");
}

/// Compress by a program; None where it is not installed.
fn by_program(program: &str, arguments: &[&str], data: &[u8]) -> Option<Vec<u8>> {
    let mut child = Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
    let mut input = child.stdin.take()?;
    let output = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(data).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{program}");
    Some(output.stdout)
}

#[test]
fn what_other_programs_compress_is_read() {
    let makers: [(&str, &[&str]); 6] = [
        ("gzip", &["-1"]),
        ("gzip", &["-9"]),
        ("igzip", &["-0"]),
        ("igzip", &["-3"]),
        ("pigz", &["-p2", "-b128"]),
        ("pigz", &["-i", "-p2", "-b128"]),
    ];
    for (name, data) in samples() {
        for (program, arguments) in makers {
            let arguments = [arguments, &["-c"]].concat();
            match by_program(program, &arguments, data) {
                Some(blob) => assert!(check(&format!("{name}, {program} {arguments:?}"), &blob) == Ok(data.clone())),
                None => assert_ne!(program, "gzip", "every machine has it"),
            }
        }
    }
}

#[test]
fn blocks_of_all_types_and_sizes_are_read() {
    let data = text(100_000);
    for block in [1, 30, 1000, 20_000] {
        for (level, flush) in
            [(0, FlushCompress::Sync), (1, FlushCompress::Sync), (6, FlushCompress::Full), (9, FlushCompress::Partial)]
        {
            let mut compress = Compress::new(Compression::new(level), false);
            let data = &data[..data.len().min(block * 3000)];
            let mut deflated: Vec<u8> =
                data.chunks(block).flat_map(|part| deflate(&mut compress, part, flush)).collect();
            deflated.extend(deflate(&mut compress, &[], FlushCompress::Finish));
            assert!(check(&format!("{block} {level} {flush:?}"), &member(&deflated, data)) == Ok(data.to_vec()));
        }
    }
}

#[test]
fn members_follow_each_other() {
    let data = text(200_000);
    for size in [1, 100, 3000, 50_000] {
        let data = &data[..data.len().min(size * 1000)];
        let blob: Vec<u8> = data.chunks(size).flat_map(|part| [gzip(part, 6), gzip(b"", 6)].concat()).collect();
        assert!(check(&format!("members of {size}"), &blob) == Ok(data.to_vec()));
    }
}

#[test]
fn helpers_go_through_members() {
    let data = text(4_000_000);
    let blob: Vec<u8> = data.chunks(50_000).flat_map(|part| gzip(part, 6)).collect();
    let (verdict, bytes) = helped(&blob[..], 4, 64 << 10);
    assert!(verdict == Ok(data.clone()));
    assert!(bytes > data.len() as u64 / 4, "{bytes} bytes");
}

#[test]
fn header_fields_are_passed_over() {
    let data = text(50_000);
    for length in [0, 1, 1000, 60_000] {
        let mut blob = Vec::new();
        for _ in 0..3 {
            let builder =
                GzBuilder::new().extra(noise(length, 3)).filename(vec![b'n'; length]).comment(vec![b'c'; length]);
            let mut encoder = builder.write(Vec::new(), Compression::default());
            encoder.write_all(&data).unwrap();
            blob.extend(encoder.finish().unwrap());
        }
        assert!(check(&format!("fields of {length}"), &blob) == Ok(data.repeat(3)));
    }
    let too_long =
        GzBuilder::new().filename(vec![b'n'; 70_000]).write(Vec::new(), Compression::default()).finish().unwrap();
    assert!(check("name", &too_long).is_err());
}

#[test]
fn a_header_has_its_own_sum() {
    let plain = gzip(&text(50_000), 6);
    let mut crc = Crc::new();
    let head = [0x1f, 0x8b, 8, 2, 0, 0, 0, 0, 0, 255];
    crc.update(&head);
    let right = [&head[..], &(crc.sum() as u16).to_le_bytes(), &plain[10..]].concat();
    assert!(check("right", &right).is_ok());
    let mut wrong = right.clone();
    wrong[10] ^= 1;
    assert!(check("wrong", &wrong).is_err());
}

#[test]
fn what_follows_the_last_member_is_judged_the_same() {
    let blob = gzip(&text(50_000), 6);
    for garbage in [&b"\0"[..], &[0; 512], b"garbage", b"\x1f", b"\x1f\x8b\x08", &blob[..5000], &noise(20_000, 5)] {
        assert!(check("garbage", &[&blob[..], garbage].concat()).is_err());
    }
    assert!(check("nothing", b"").is_err());
}

#[test]
fn a_cut_is_an_error_wherever_it_is() {
    let blob = gzip(&text(50_000), 6);
    let middle = (100..blob.len() - 100).step_by(211);
    for length in (0..100).chain(middle).chain(blob.len() - 100..blob.len()) {
        assert!(check(&format!("cut at {length}"), &blob[..length]).is_err());
    }
}

#[test]
fn blocks_inside_of_stored_blocks_deceive_helpers_only() {
    // A stored block for each of many small streams, which a helper finds and believes in to their end.
    let inner: Vec<Vec<u8>> = text(100_000).chunks(2000).map(in_two_blocks).collect();
    let mut compress = Compress::new(Compression::none(), false);
    let mut deflated: Vec<u8> =
        inner.iter().flat_map(|stream| deflate(&mut compress, stream, FlushCompress::Full)).collect();
    deflated.extend(deflate(&mut compress, &[], FlushCompress::Finish));
    assert!(check("streams in a stream", &member(&deflated, &inner.concat())) == Ok(inner.concat()));
}

/// A member whose first block is not its last.
fn in_two_blocks(data: &[u8]) -> Vec<u8> {
    let mut compress = Compress::new(Compression::new(9), false);
    let first = deflate(&mut compress, &data[..data.len() / 2], FlushCompress::Sync);
    member(&[first, deflate(&mut compress, &data[data.len() / 2..], FlushCompress::Finish)].concat(), data)
}

#[test]
fn a_copy_from_before_a_member_is_corrupt() {
    // Some work first, until helpers are there.
    let (first, before) = (gzip(&text(600_000), 6), text(20_000));
    for length in (4000..8000).step_by(300) {
        // The compressor believes that the member before is part of this one. One block has copies from there, which a helper
        // may come upon first; the sums would be right.
        let parts = [noise(length, 4), text(30_000)[24_000..27_000].to_vec(), noise(5000, 5)];
        let mut compress = Compress::new(Compression::new(6), false);
        deflate(&mut compress, &before, FlushCompress::Sync);
        let mut deflated: Vec<u8> =
            parts.iter().flat_map(|part| deflate(&mut compress, part, FlushCompress::Sync)).collect();
        deflated.extend(deflate(&mut compress, &[], FlushCompress::Finish));
        let blob = [first.clone(), gzip(&before, 6), member(&deflated, &parts.concat())].concat();
        assert_eq!(check("too far back", &blob), Err(io::ErrorKind::InvalidInput));
    }
}

#[test]
fn the_sum_of_every_member_counts() {
    let members: Vec<Vec<u8>> = text(30_000).chunks(1000).map(|part| gzip(part, 6)).collect();
    let mut end = 0;
    for member in &members {
        end += member.len();
        for back in [8, 1] {
            let mut blob = members.concat();
            blob[end - back] ^= 1;
            assert_eq!(check("a sum", &blob), Err(io::ErrorKind::InvalidInput));
        }
    }
}

#[test]
fn a_member_far_larger_than_its_pieces_is_read_by_the_reader_alone() {
    let data = vec![0; 20_000_000];
    assert!(check("zeros", &gzip(&data, 9)) == Ok(data));
}

#[test]
fn an_error_of_the_source_is_the_readers() {
    struct Breaks(usize);
    impl Read for Breaks {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::Error::other("gone"));
            }
            self.0 -= 1;
            let blob = gzip(b"", 1);
            buffer[..blob.len()].copy_from_slice(&blob);
            Ok(blob.len())
        }
    }
    for cores in MACHINES {
        let (verdict, _) = helped(BufReader::new(Breaks(10_000)), cores, PIECE);
        assert_eq!(verdict, Err(io::ErrorKind::Other));
    }
}

/// Hands out what it has in parts.
struct Parts<'a> {
    left: &'a [u8],
    lengths: std::iter::Cycle<std::slice::Iter<'a, usize>>,
}

impl Read for Parts<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.lengths.next().copied().unwrap_or(1).min(buffer.len()).min(self.left.len());
        let (now, left) = self.left.split_at(length);
        buffer[..length].copy_from_slice(now);
        self.left = left;
        Ok(length)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn input_may_come_in_parts_of_any_length(
        lengths in proptest::collection::vec(1usize..5000, 1..20), capacity in 1usize..9000, piece in 2048usize..20_000, sample in 2usize..9,
    ) {
        let (name, data) = &samples()[sample];
        let data = &data[..data.len().min(200_000)];
        let blob = gzip(data, 6);
        let parts = Parts { left: &blob, lengths: lengths.iter().cycle() };
        let (verdict, _) = helped(BufReader::with_capacity(capacity, parts), 4, piece);
        prop_assert!(verdict == Ok(data.to_vec()), "{}", name);
    }

    #[test]
    fn damage_is_judged_the_same(
        bits in proptest::collection::vec(any::<u32>(), 1..4), sample in 2usize..9, level in 0u32..10, members in any::<bool>(), cores in 1usize..9,
    ) {
        let (name, data) = &samples()[sample];
        let data = &data[..data.len().min(100_000)];
        let mut blob = if members { data.chunks(9000).flat_map(|part| gzip(part, level)).collect() } else { gzip(data, level) };
        for bit in bits {
            let at = bit as usize / 8 % blob.len();
            blob[at] ^= 1 << (bit % 8);
        }
        let (expected, (verdict, _)) = (serial(&blob), helped(&blob[..], cores, PIECE));
        prop_assert!(verdict == expected, "{}: {}", name, differ(&verdict, &expected));
    }

    #[test]
    fn any_bytes_are_judged_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..6000), cores in 1usize..9) {
        // Behind a stream's beginning, since else the first byte is refused.
        let blob = [&gzip(&text(40_000), 6)[..10_000], &bytes].concat();
        let (expected, (verdict, _)) = (serial(&blob), helped(&blob[..], cores, PIECE));
        prop_assert!(verdict == expected, "{}", differ(&verdict, &expected));
        let blob = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255][..], &bytes].concat();
        let (expected, (verdict, _)) = (serial(&blob), helped(&blob[..], cores, PIECE));
        prop_assert!(verdict == expected, "{}", differ(&verdict, &expected));
    }
}
