"""Images in one file or folder: OCI image layouts and docker-archives, as one end of a transfer."""
