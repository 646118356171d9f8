//! Counters: what several mappings of one file add comes together, and what cannot be mapped is refused.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::thread;

use lamella_core::Kind;
use lamella_core::counters::Counters;
use proptest::prelude::*;

#[test]
fn additions_of_all_mappings_and_threads_come_together() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("counters");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let counters = Counters::open(&path, 600).unwrap();
                assert!(counters.shared());
                for index in (0..600).cycle().take(60_000) {
                    assert!(counters.add(index, 3));
                }
            });
        }
    });
    assert_eq!(Counters::open(&path, 600).unwrap().read(), vec![2400; 600]);
}

#[test]
fn the_file_is_private_and_has_no_holes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("counters");
    let _counters = Counters::open(&path, 3000).unwrap();
    let status = fs::metadata(&path).unwrap();
    assert_eq!(status.permissions().mode() & 0o7777, 0o600);
    assert_eq!(status.len(), 24_000);
    assert!(status.blocks() * 512 >= 24_000, "a hole on a full disk would be a SIGBUS");
}

#[test]
fn a_file_that_its_maker_left_short_is_completed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("counters");
    fs::write(&path, [1, 0, 0, 0, 0, 0, 0, 0, 7]).unwrap();
    assert_eq!(Counters::open(&path, 3).unwrap().read(), [1, 7, 0]);
}

#[test]
fn another_length_a_symlink_or_a_folder_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("counters");
    fs::write(&path, [0; 32]).unwrap();
    let error = Counters::open(&path, 3).unwrap_err();
    assert_eq!(error.kind, Kind::FailedPrecondition);
    assert!(error.hint.is_some());
    assert_eq!(fs::metadata(&path).unwrap().len(), 32);

    let link = folder.path().join("link");
    symlink(&path, &link).unwrap();
    assert_eq!(Counters::open(&link, 4).unwrap_err().kind, Kind::InvalidArgument);
    assert!(Counters::open(folder.path(), 4).is_err());
    assert_eq!(Counters::open(&folder.path().join("no/such"), 4).unwrap_err().kind, Kind::NotFound);
}

#[test]
fn a_file_of_another_user_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("counters");
    fs::write(&path, [0; 32]).unwrap();
    if std::os::unix::fs::chown(&path, Some(12345), None).is_err() {
        return; // it takes root to give a file away
    }
    assert!(Counters::open(&path, 4).unwrap_err().message.contains("another user"));
}

#[test]
fn there_are_counters_without_a_file_and_none_beyond_the_last() {
    let counters = Counters::own(2);
    assert!(!counters.shared());
    assert!(counters.add(1, 5));
    assert!(!counters.add(2, 5));
    assert_eq!(counters.read(), [0, 5]);
    assert!(Counters::open(&tempfile::tempdir().unwrap().path().join("none"), 0).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_additions_by_any_mapping_are_those_of_one_list(
        count in 1usize..700,
        steps in proptest::collection::vec((any::<usize>(), 0usize..3, any::<u64>()), 0..200),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("counters");
        let mappings: Vec<Counters> = (0..3).map(|_| Counters::open(&path, count).unwrap()).collect();
        let mut expected = vec![0u64; count];
        for (index, mapping, amount) in steps {
            let index = index % count;
            mappings[mapping].add(index, amount);
            expected[index] = expected[index].wrapping_add(amount);
        }
        drop(mappings);
        prop_assert_eq!(Counters::open(&path, count).unwrap().read(), expected);
    }
}
