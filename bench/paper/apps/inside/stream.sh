#!/bin/sh
# Streams the clip for ever, at the rate of playing, as segments of a second. It was encoded when the layer was made.
set -eu
live=/var/lib/p2player/hls
mkdir -p "$live"
exec ffmpeg -nostdin -hide_banner -loglevel error -re -stream_loop -1 -i /opt/p2p/clip.mp4 -c copy \
    -f hls -hls_time 1 -hls_list_size 6 -hls_flags delete_segments+temp_file -start_number 1 \
    -hls_segment_filename "$live/%d.ts" "$live/live.m3u8"
