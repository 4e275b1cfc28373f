"""A real RTSP server on loopback, for tests/sources.rs and tests of the whole daemon.

    /usr/bin/python3 rtsp_server.py [--port N] [--user NAME --password WORD] [--clients FILE] [CLIP.mp4]

Serves /live (a moving test picture, VP8, for ever, with sound), /small (a small one, JPEG, of which many run on one
machine), /sound (only sound) and /clip (the H.264 of CLIP.mp4,
from its beginning for each client, then the end). Prints `ready PORT` when it listens; ends when its stdin closes, so
that it never outlives the test that started it. FILE gets a line for each client that connects.
"""

import argparse
import sys
import threading

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

LIVE = (
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,width=320,height=240,framerate=25/1 ! "
    "vp8enc deadline=1 keyframe-max-dist=25 ! rtpvp8pay name=pay0 pt=96 "
    "audiotestsrc is-live=true wave=silence ! audioconvert ! alawenc ! rtppcmapay name=pay1 pt=8 )"
)
SMALL = (
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,format=I420,width=160,height=120,framerate=10/1 ! jpegenc ! "
    "rtpjpegpay name=pay0 pt=26 )"
)
SOUND = "( audiotestsrc is-live=true wave=silence ! audioconvert ! alawenc ! rtppcmapay name=pay0 pt=8 )"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", default="0")
    parser.add_argument("--user")
    parser.add_argument("--password", default="")
    parser.add_argument("--clients")
    parser.add_argument("clip", nargs="?")
    args = parser.parse_args()

    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(args.port)
    if args.user:
        auth = GstRtspServer.RTSPAuth()
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "user")
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(args.user, args.password), token)
        server.set_auth(auth)

    paths = {"/live": (LIVE, True), "/small": (SMALL, True), "/sound": (SOUND, True)}
    if args.clip:
        clip = f'( filesrc location="{args.clip}" ! qtdemux ! h264parse ! rtph264pay name=pay0 pt=96 config-interval=-1 )'
        paths["/clip"] = (clip, False)
    for path, (pipeline, shared) in paths.items():
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(pipeline)
        factory.set_shared(shared)
        if args.user:
            permissions = GstRtspServer.RTSPPermissions()
            permissions.add_permission_for_role("user", "media.factory.access", True)
            permissions.add_permission_for_role("user", "media.factory.construct", True)
            factory.set_permissions(permissions)
        server.get_mount_points().add_factory(path, factory)

    if args.clients:

        def connected(_server, client):
            with open(args.clients, "a") as file:
                print(client.get_connection().get_ip(), file=file)

        server.connect("client-connected", connected)

    if server.attach(None) == 0:
        sys.exit(f"port {args.port} is taken")
    print("ready", server.get_bound_port(), flush=True)
    loop = GLib.MainLoop()
    threading.Thread(target=lambda: (sys.stdin.read(), loop.quit()), daemon=True).start()
    loop.run()


main()
