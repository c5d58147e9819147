"""Sandboxes from and to the JSON that containerd stores.

documents      JSON documents in a file
extensions     extensions as JSON
import_export  sandboxes from and to containerd's JSON
"""
