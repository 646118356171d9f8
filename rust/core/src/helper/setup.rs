//! What is said while a helper is made.

use serde::{Deserialize, Serialize};

/// A range of ids: the first one inside, the first one outside, how many.
pub type Extent = (u32, u32, u32);

/// What the helper's user namespace maps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maps {
    /// Users.
    pub users: Vec<Extent>,
    /// Groups.
    pub groups: Vec<Extent>,
    /// Why it is not more, where it is one id only.
    pub notes: Vec<String>,
    /// The helper's process, as its caller sees it.
    pub helper: Option<i32>,
}

/// What the launcher is told when it is to become a helper.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setup {
    /// It makes a user namespace. Otherwise it is in its caller's, and only confined.
    pub namespace: bool,
    /// The user's name, by which ranges of ids are his.
    pub user: Option<String>,
    /// Where newuidmap and newgidmap are looked for.
    pub search: String,
}
