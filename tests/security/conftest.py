"""What the tests of secrets, versions and clocks share with those of the commands."""

from __future__ import annotations

from tests.jobs import conftest as commands
from tests.pipeline import conftest as storage

at_home, config, refused = commands.at_home, commands.config, commands.refused
s3_endpoint, s3_environment, s3_uri = storage.s3_endpoint, storage.s3_environment, storage.s3_uri
store, place = storage.store, storage.place
