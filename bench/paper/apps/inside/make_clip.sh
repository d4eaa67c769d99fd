#!/bin/sh
# Encodes the clip that is streamed: a minute of a moving test picture with a tone, a key frame each second.
# One thread and "bitexact": the same ffmpeg makes the same file.
set -eu
exec ffmpeg -nostdin -hide_banner -loglevel error -y \
    -f lavfi -i testsrc2=size=480x270:rate=25:duration=60 \
    -f lavfi -i sine=frequency=440:duration=60 \
    -c:v libx264 -preset veryfast -threads 1 -pix_fmt yuv420p -b:v 500k -g 25 -keyint_min 25 -sc_threshold 0 \
    -c:a aac -b:a 64k -flags +bitexact -fflags +bitexact -map_metadata -1 "$1"
