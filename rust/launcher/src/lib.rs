//! The container's parent process: the launcher sets a container up from an OCI runtime-spec bundle and stays as its
//! monitor.
