//! Every way out of a layer folder that we know of, in a table that the tests of the library share: each ends inside
//! the folder or in an error, and the host around it stays as it was.

use std::path::{Path, PathBuf};

use lamella_core::Result;
use lamella_core::layer::{WhiteoutFormat, read_file, resolve};
use serde_json::Value;

use crate::archive::{Archive, Header};
use crate::host::Host;
use crate::{apply_to, format, is_privileged};

/// The layers of one attempt, bottom first, and what becomes of it.
struct Attempt {
    name: String,
    layers: Vec<Value>,
    end: End,
}

enum End {
    /// An error of this kind; `LamellaError` stands for any.
    Refused(String),
    /// What the image then shows: files with their content, or nothing.
    Shows(Vec<(String, Option<String>)>),
}

fn attempts() -> Vec<Attempt> {
    let table = include_str!("../../../../tests/security/breakouts.json");
    let Value::Array(rows) = serde_json::from_str(table).unwrap() else { panic!("the table is a list") };
    let attempt = |row: &Value| Attempt {
        name: row["name"].as_str().unwrap().to_owned(),
        layers: row["layers"].as_array().unwrap().clone(),
        end: match row.get("refused") {
            Some(kind) => End::Refused(kind.as_str().unwrap().to_owned()),
            None => End::Shows(
                (row["shows"].as_object().unwrap().iter())
                    .map(|(path, content)| (path.clone(), content.as_str().map(ToOwned::to_owned)))
                    .collect(),
            ),
        },
    };
    rows.iter().map(attempt).collect()
}

/// Write where the host's folder is into a name or target.
fn placed(text: &str, outside: &Path) -> String {
    let outside = outside.to_str().unwrap();
    text.replace("{outside}", outside).replace("{up}", &format!("{}{outside}", "../".repeat(20).trim_end_matches('/')))
}

/// The archive of a layer of the table.
fn archive(layer: &Value, outside: &Path) -> Vec<u8> {
    layer.as_array().unwrap().iter().fold(Archive::new(), |archive, entry| add(archive, entry, outside)).end()
}

fn add(archive: Archive, entry: &Value, outside: &Path) -> Archive {
    let text = |index: usize| placed(entry[index].as_str().unwrap_or_default(), outside);
    let (name, argument) = (text(1), text(2));
    let (kind, content, link, mode) = match entry[0].as_str().unwrap() {
        "pax" => {
            let records = entry[1].as_object().unwrap().iter();
            let records: Vec<_> =
                records.map(|(key, value)| (key.as_str(), placed(value.as_str().unwrap(), outside))).collect();
            let records: Vec<_> = records.iter().map(|(key, value)| (*key, value.as_bytes())).collect();
            return archive.pax(&records);
        }
        "longname" => return archive.extension(b'L', format!("{name}\0").as_bytes()),
        "longlink" => return archive.extension(b'K', format!("{name}\0").as_bytes()),
        "folder" => (b'5', "", "", 0o755),
        "file" => (b'0', argument.as_str(), "", 0o644),
        "symlink" => (b'2', "", argument.as_str(), 0o777),
        "hardlink" => (b'1', "", argument.as_str(), 0o644),
        "fifo" => (b'6', "", "", 0o644),
        "device" if !is_privileged() => return archive,
        "device" => (b'3', "", "", 0o644),
        other => panic!("the table has no kind '{other}'"),
    };
    let fields = &entry[entry.as_array().unwrap().len() - 1];
    let mut header = Header { path: name.as_bytes(), kind, link: link.as_bytes(), mode, ..Header::default() };
    if let Some(mode) = fields["mode"].as_str() {
        header.mode = u32::from_str_radix(mode, 8).unwrap();
    }
    if is_privileged() {
        header.uid = fields["uid"].as_u64().unwrap_or(header.uid);
        header.gid = fields["gid"].as_u64().unwrap_or(header.gid);
    }
    header.mtime = fields["mtime"].as_u64().unwrap_or(header.mtime);
    header.device = (entry[2].as_u64().unwrap_or(0), entry[3].as_u64().unwrap_or(0));
    let mut long = Vec::new();
    for (key, value) in [("path", header.path), ("linkpath", header.link)] {
        if value.len() > 100 {
            long.push((key, value));
        }
    }
    let archive = if long.is_empty() { archive } else { archive.pax(&long) };
    archive.entry(&header, content.as_bytes())
}

/// Makes layer folders of archives, bottom first, and gives those that a mount would stack, nearest first.
type Apply = fn(&Host, &[Vec<u8>], WhiteoutFormat) -> Result<Vec<PathBuf>>;

/// Make every attempt on a host of its own, and say of each where it ended otherwise than the table says.
fn make_every_attempt(format: WhiteoutFormat, apply: Apply) {
    let mut wrong = Vec::new();
    for attempt in attempts() {
        let host = Host::new(attempt.layers.len());
        let archives: Vec<_> = attempt.layers.iter().map(|layer| archive(layer, &host.outside())).collect();
        let result = apply(&host, &archives, format);
        let mut say = |text: String| wrong.push(format!("{}: {text}", attempt.name));
        host.differences().into_iter().for_each(&mut say);
        match (result, &attempt.end) {
            (Err(error), End::Refused(kind)) => {
                if kind != "LamellaError" && *kind != format!("{:?}", error.kind) {
                    say(format!("refused with {error:?}"));
                }
            }
            (Err(error), End::Shows(_)) => say(format!("refused with {error:?}")),
            (Ok(_), End::Refused(_)) => say("not refused".to_owned()),
            (Ok(layers), End::Shows(files)) => {
                for (path, content) in files {
                    let path = placed(path, &host.outside());
                    let found = read_file(&layers, format, path.as_bytes(), 1000).unwrap();
                    if found.as_deref() != content.as_deref().map(str::as_bytes) {
                        say(format!("{path} is {:?}", found.map(|found| String::from_utf8_lossy(&found).into_owned())));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_attempt_on_one_plain_folder_ends_inside_it_or_in_an_error() {
    make_every_attempt(WhiteoutFormat::Plain, |host, archives, format| {
        for archive in archives {
            apply_to(&host.layer(0), archive, format)?;
        }
        Ok(vec![host.layer(0)])
    });
}

#[test]
fn every_attempt_on_a_stack_of_layers_ends_inside_it_or_in_an_error() {
    make_every_attempt(format(), |host, archives, format| {
        let mut stack: Vec<PathBuf> = Vec::new();
        for (number, archive) in archives.iter().enumerate() {
            let layer = host.layer(number);
            let applied = apply_to(&layer, archive, format)?;
            resolve(&layer, &stack, &applied.deferred)?;
            stack.insert(0, layer);
        }
        Ok(stack)
    });
}

#[test]
fn no_attempt_of_one_layer_alone_changes_anything_outside_its_folder() {
    for format in [format(), WhiteoutFormat::OverlayUserXattr] {
        for attempt in attempts() {
            for layer in &attempt.layers {
                let host = Host::new(1);
                let applied = apply_to(&host.layer(0), &archive(layer, &host.outside()), format);
                assert_eq!(host.differences(), [""; 0], "{}: applied", attempt.name);
                let Ok(applied) = applied else { continue };
                let _ = resolve::<PathBuf>(&host.layer(0), &[], &applied.deferred);
                assert_eq!(host.differences(), [""; 0], "{}: resolved", attempt.name);
            }
        }
    }
}
