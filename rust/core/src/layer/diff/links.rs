//! Hard links: names of one inode are one group, and a layer has either all names of a group or none.

use std::collections::{HashMap, HashSet};

use super::{Change, NodeKind};

type Inode = (u64, u64);

/// A name that has not changed, of an inode that has several names now or had before; or a folder that holds such names.
pub struct Unchanged {
    pub change: Change,
    pub before: Option<Inode>,
}

/// Turn further names into links to the first, and take in what has not changed where its group has.
///
/// `before` gives the inode, in the tree before, of changed names that had several names there.
pub fn settle(changes: &mut Vec<Change>, unchanged: Vec<Unchanged>) {
    let mut dirty: HashSet<Inode> = changes.iter().filter_map(inode).collect();
    // Groups are the same as before if each is one inode of the tree before, and no two are the same one.
    let mut befores: HashMap<Inode, Inode> = HashMap::new();
    let mut afters: HashMap<Inode, Option<Inode>> = HashMap::new();
    for Unchanged { change, before } in &unchanged {
        let Some(after) = inode(change) else { continue };
        let same_before = *afters.entry(after).or_insert(*before) == *before;
        let same_after = before.is_none_or(|before| *befores.entry(before).or_insert(after) == after);
        if !same_before || !same_after {
            dirty.insert(after);
        }
    }
    // Folders stand after what is in them.
    let mut parents: HashSet<Vec<u8>> = HashSet::new();
    for Unchanged { change, .. } in unchanged {
        if parents.contains(&change.path) || inode(&change).is_some_and(|inode| dirty.contains(&inode)) {
            let end = change.path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            parents.insert(change.path[..end].to_vec());
            changes.push(change);
        }
    }
    changes.sort_by(|one, other| key(&one.path).cmp(key(&other.path)));
    let mut first: HashMap<Inode, Vec<u8>> = HashMap::new();
    for change in changes {
        let Some(inode) = inode(change) else { continue };
        match first.get(&inode) {
            None => drop(first.insert(inode, change.path.clone())),
            Some(target) => {
                if let Some(node) = &mut change.node {
                    node.kind = NodeKind::HardLink(target.clone());
                }
            }
        }
    }
}

fn inode(change: &Change) -> Option<Inode> {
    change.node.as_ref().and_then(|node| node.inode)
}

/// Compares as the walk goes: component by component.
fn key(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty())
}
