"""WsgiDAV over the directory MWR_DAV_ROOT, mounted at /webdav, for everybody."""

import os
import warnings

from wsgidav.fs_dav_provider import FilesystemProvider
from wsgidav.wsgidav_app import WsgiDAVApp

warnings.simplefilter("ignore")
application = WsgiDAVApp({
    "provider_mapping": {"/": FilesystemProvider(os.environ["MWR_DAV_ROOT"], readonly=False)},
    "mount_path": "/webdav",
    "simple_dc": {"user_mapping": {"*": True}},
    "dir_browser": {"enable": False},
    "lock_storage": True,
    "property_manager": True,
    "logging": {"enable": False},
    "verbose": 1,
})
