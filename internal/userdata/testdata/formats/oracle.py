# SPDX-License-Identifier: Apache-2.0
"""Shows what Debian 12's cloud-init 22.4.2 makes of userdata: standard input in, JSON out.

answers.json holds its answers to the .in files, and to what rewrap makes of them.
cloud-init need not be installed to ask it again:

    apt-get download cloud-init python3-{jinja2,markupsafe,yaml,jsonschema,configobj,requests,six,jsonpatch} \
        python3-{json-pointer,oauthlib,attr,pyrsistent,netifaces,urllib3,chardet,certifi,idna,jwt,serial}
    for p in *.deb; do dpkg -x $p root; done
    CLOUD_INIT=$PWD/root/usr/lib/python3/dist-packages go test -run TestAgainstCloudInit ./internal/userdata
"""
import base64
import hashlib
import json
import logging
import os
import sys
import tempfile
from unittest import mock

from cloudinit import handlers, helpers, stages, subp, user_data, util
from cloudinit.handlers import jinja_template

# What instance data a node in CloudStack has, as far as templates are concerned.
INSTANCE = {
    "base64_encoded_keys": [],
    "ds": {"meta_data": {"instance-id": "i-1", "local-hostname": "node-1", "peer_ip_address": "10.0.0.9"}},
    "merged_cfg": {}, "sensitive_keys": [], "sys_info": {}, "userdata": "", "vendordata": "",
    "v1": {"availability_zone": "zone", "cloud_name": "cloudstack", "distro": "debian", "instance_id": "i-1",
           "local_hostname": "node-1", "platform": "cloudstack", "region": None},
}


def text(payload):
    """JSON holds text; what is no UTF-8 is shown in base64."""
    if payload is None:
        return None
    data = payload if isinstance(payload, bytes) else payload.encode("utf-8", "surrogateescape")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def include(self, content, append_msg):
    """In place of the download: the part itself."""
    part = user_data.convert_string(content)
    part.replace_header("Content-Type", "text/x-include-url") if "Content-Type" in part else None
    self._attach_part(append_msg, part)


def main():
    raw = sys.stdin.buffer.read()
    answer = {"sha256": hashlib.sha256(raw).hexdigest(), "error": "", "parts": [], "config": None, "files": {}, "warnings": []}

    class Keep(logging.Handler):
        def emit(self, record):
            answer["warnings"].append(record.getMessage().split("\n")[0])

    logging.getLogger().addHandler(Keep(logging.WARNING))
    with tempfile.TemporaryDirectory() as root:
        paths = helpers.Paths({"cloud_dir": root + "/cloud", "run_dir": root + "/run"})
        os.makedirs(paths.get_ipath_cur("scripts") if paths.datasource else root + "/cloud/instance/scripts")
        os.makedirs(root + "/run")
        util.write_file(paths.get_runpath("instance_data_sensitive"), json.dumps(INSTANCE))
        source = mock.Mock()
        source.get_instance_id.return_value = "i-1"
        paths.datasource = source
        init = mock.Mock(paths=paths, datasource=source)
        all_handlers = stages.Init._default_handlers(init)
        types = helpers.ContentHandlers()
        for handler in all_handlers:
            types.register(handler, overwrite=False)
        config = all_handlers[0]

        def callback(data, filename, payload, headers):
            ctype = headers["Content-Type"]
            part = {"type": ctype, "name": filename, "text": text(payload),
                    "merge": headers.get("Merge-Type") or headers.get("X-Merge-Type") or ""}
            if ctype == "text/jinja2":
                try:
                    part["rendered"] = text(jinja_template.render_jinja_payload_from_file(
                        payload, filename, paths.get_runpath("instance_data_sensitive")))
                except Exception as error:
                    part["rendered"] = None
                    part["failed"] = type(error).__name__
            answer["parts"].append(part)
            if ctype != "text/part-handler":
                handlers.walker_callback(data, filename, payload, headers)

        with mock.patch.object(user_data.UserDataProcessor, "_do_include", include), mock.patch.object(subp, "subp"):
            try:
                message = user_data.UserDataProcessor(paths).process(raw)
                data = {"handlers": types, "handlerdir": root, "data": None, "frequency": "once-per-instance",
                        "handlercount": 0, "excluded": []}
                handlers.call_begin(config, None, "once-per-instance")
                handlers.walk(message, callback, data)
            except Exception as error:
                answer["error"] = type(error).__name__
        answer["config"] = config.cloud_buf
        for folder, _, names in os.walk(root + "/cloud"):
            for name in names:
                with open(os.path.join(folder, name), "rb") as file:
                    answer["files"][os.path.relpath(os.path.join(folder, name), root + "/cloud")] = text(file.read())
    answer["warnings"] = sorted(set(answer["warnings"]))
    json.dump(answer, sys.stdout, indent=1, sort_keys=True, default=repr)


main()
