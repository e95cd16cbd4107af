/*
 * participants.pml: numbers of participants and their reuse, ledgers, reclaim.
 *
 * A handle is a process that registers at an entry, does its jobs (one send, one receive) and closes; it can be killed or stopped at
 * any step.  There are fewer entries than handles, so numbers are used again.  The queue is as in queue.pml, without priorities,
 * with coarser steps where queue.pml has checked the fine ones.
 *
 * Compare shm/participant.go (register, adopt, reclaim) and shm/slots.go (reserve).
 */
#ifndef N
#define N 3                     /* slots */
#endif
#ifndef NE
#define NE 2                    /* entries */
#endif
#ifndef NH
#define NH 3                    /* handles */
#endif
#ifndef MAX
#define MAX 2                   /* capacity */
#endif
#ifndef SENDS
#define SENDS 3                 /* bit h: handle h sends one message (its number + 1) */
#endif
#ifndef RECVS
#define RECVS 6                 /* bit h: handle h then receives once */
#endif
#ifndef MAXTO
#define MAXTO 0                 /* takeovers from live holders that run */
#endif
#ifndef KILLS
#define KILLS 1
#endif
#ifndef STOPS
#define STOPS 0                 /* handles stopped for ever: they keep their entry's lock */
#endif
#define NA (NE+1)

/* State words: kind, owner or tag, seq.  Owner = entry and generation. */
#define FREE 0
#define RES 1
#define RDY 2
#define TKN 3
#define W(k,t,s) ((k)|((t)<<2)|((s)<<5))
#define KIND(w) ((w)&3)
#define TAG(w)  (((w)>>2)&7)
#define SEQ(w)  (((w)>>5)&7)
#ifdef M_NOGENERATION
#define OWN(p,g) (p)
#else
#define OWN(p,g) ((p)|((g)<<1))
#endif

byte st[N], nxt[N], body[N], writer[N];
byte hseq, hslot;               /* head */
byte Lep, Lar, LD; bit Lheld; byte Lown=255;
byte ev[NA*N], node[NA*N];      /* evidence: seq; and the index: expected words */
byte mk[NE];                    /* mark of each entry: area + 1 */
byte consumed[NA];
byte gen[NE], live[NE];         /* an entry's word: generation, registered and not closed */
byte elock[NE];                 /* the kernel's lock on the entry's byte: handle + 1 */
byte ledger[2*NE];              /* slot + 1: place 0 for sends, 1 for claims */
byte undecided[NE];             /* ghost: drained + 1 when a registrant left the entry alone (keeps it from spinning) */
byte ms[NH+1];                  /* ghost: 0 not sent, 1 queued, 2 claimed, 3 received, 4 lost with who had it */
byte dead, stopped, fin, tos;
hidden byte x, y, z;
#define RUN (!((dead|stopped)&(1<<me)))
#define GONE(h) (((dead|stopped)>>(h))&1)
#if NE==1
#define EV(i,q) (ev[i]==(q) || ev[N+(i)]==(q))
#define MARKED(b) (p!=0 && mk[0]==b+1)
#elif NE==2
#define EV(i,q) (ev[i]==(q) || ev[N+(i)]==(q) || ev[2*N+(i)]==(q))
#define MARKED(b) ((p!=0 && mk[0]==b+1) || (p!=1 && mk[1]==b+1))
#else
#error NE is 1 or 2
#endif
#define MINE (Lheld && Lep==ep && Lar==ar)

inline clearlists() { x=0; do :: x<N -> node[ar*N+x]=0; x++ :: else -> break od; x=0 }
inline insert(sl,word) { node[ar*N+sl]=word; ev[ar*N+sl]=SEQ(word) }

proctype Handle(byte me) {
  byte p, own, s, w, k, h, i, m, jobs;
  byte ep, ar, b, D, H, ins;
  byte cs[N];
  jobs=((SENDS>>me)&1)|(((RECVS>>me)&1)<<1);

/* ---- Register: the entry's lock, what the one before left, the next generation ---- */
REG: atomic { RUN;
#ifdef M_NOENTRYLOCK
       if :: live[0] && elock[0]!=0 && GONE(elock[0]-1) -> p=0
          :: elock[0]==0 && undecided[0]!=LD+1 -> p=0
#if NE>1
          :: elock[1]==0 && undecided[1]!=LD+1 -> p=1
#endif
       fi;
       if :: live[p] -> k=0; goto RCL :: else -> elock[p]=me+1; goto ADOPT fi }
#else
       if :: elock[0]==0 && undecided[0]!=LD+1 -> p=0
#if NE>1
          :: elock[1]==0 && undecided[1]!=LD+1 -> p=1
#endif
       fi;
       elock[p]=me+1; printf("H%d locks entry %d\n",me,p); if :: live[p] -> k=0 :: else -> goto ADOPT fi }
#endif
RCL: atomic { RUN; if :: k==2 -> k=0; goto RECLAIMED :: else -> s=ledger[2*p+k]; if :: s==0 -> k++; goto RCL :: else -> s-- fi fi }
     atomic { RUN; w=st[s]; own=OWN(p,gen[p]);
       if :: (KIND(w)==RES || KIND(w)==TKN) && TAG(w)==own -> goto RFREE
          :: KIND(w)==RDY && TAG(w)==0 -> skip
          :: else -> goto RNEXT fi }
     atomic { RUN; D=LD }
     atomic { RUN; h=hseq }
#ifndef M_NOWRITER
     atomic { RUN; if :: writer[s]!=own -> goto RNEXT :: else fi }
#endif
#ifdef M_NOEVIDENCE
     atomic { RUN; if :: SEQ(w)>h || SEQ(w)<=D -> goto RFREE :: else -> b=1; goto RNEXT fi }
#else
     atomic { RUN; if :: SEQ(w)>h -> goto RFREE
                      :: SEQ(w)<=D && !EV(s,SEQ(w)) -> goto RFREE
                      :: SEQ(w)>D && SEQ(w)<=h ->
#ifdef M_UNDECIDEDFREE
                         goto RFREE
#else
                         b=1; goto RNEXT
#endif
                      :: else -> goto RNEXT fi }
#endif
RFREE: atomic { RUN;
       if :: st[s]==w -> printf("H%d reclaims slot %d of entry %d\n",me,s,p);
             if :: KIND(w)==TKN -> assert(ms[body[s]]==2); ms[body[s]]=4
                :: else -> assert(body[s]==0 || ms[body[s]]==0 && (dead>>(body[s]-1))&1) fi;
             st[s]=FREE; body[s]=0
          :: else fi }
RNEXT: atomic { RUN; k++; s=0; w=0; D=0; h=0; own=0; goto RCL }
RECLAIMED: atomic { RUN; if :: b -> b=0; undecided[p]=LD+1; elock[p]=0; printf("H%d leaves entry %d alone\n",me,p); p=0; goto REG :: else fi;
#ifdef M_NOENTRYLOCK
       if :: elock[p]==0 -> elock[p]=me+1 :: else -> p=0; goto REG fi;
#endif
       mk[p]=0 }
ADOPT: atomic { RUN; gen[p]=gen[p]+1; own=OWN(p,gen[p]); live[p]=1; printf("H%d is entry %d generation %d\n",me,p,gen[p]) }

/* ---- Send: ledger, CAS to RESERVED, head, READY, CAS of head ---- */
JOB: atomic { RUN; if :: jobs&1 -> m=me+1 :: else -> goto JOB2 fi }
GET: atomic { RUN; if :: st[0]==FREE -> s=0 :: st[1]==FREE -> s=1
#if N>2
       :: st[2]==FREE -> s=2
#endif
       fi;
#ifndef M_LEDGERLATE
       ledger[2*p]=s+1;
#endif
     }
     atomic { RUN; if :: st[s]==FREE -> st[s]=W(RES,own,0); body[s]=m; printf("H%d reserves slot %d\n",me,s) :: else -> s=0; goto GET fi }
#ifdef M_LEDGERLATE
     atomic { RUN; ledger[2*p]=s+1 }
#endif
     atomic { RUN; writer[s]=own }
HEAD: atomic { RUN; h=hseq; nxt[s]=hslot; if :: h+1>MAX+consumed[Lar] -> h=0; goto FULL :: else fi }
     atomic { RUN; assert(st[s]==W(RES,own,0) && body[s]==m); st[s]=W(RDY,0,h+1) }
     atomic { RUN; assert(st[s]==W(RDY,0,h+1) && body[s]==m);
       if :: hseq==h -> hseq=h+1; hslot=s; assert(ms[m]==0); ms[m]=1; printf("H%d COMMIT m%d seq %d slot %d\n",me,m,h+1,s); m=0; s=0; h=0; goto JOB2 :: else fi }
     atomic { RUN; st[s]=W(RES,own,0); h=0; goto HEAD }
FULL: atomic { RUN && hseq+1<=MAX+consumed[Lar] -> goto HEAD };

/* ---- Receive ---- */
JOB2: atomic { RUN; jobs=jobs&2; if :: jobs==0 -> goto CLOSE :: else fi }
ACQ: atomic { RUN;
       if :: !Lheld -> ep=Lep; ar=Lar; D=LD; Lheld=1; Lown=me; mk[p]=ar+1; goto DRAIN
          :: Lheld && (tos<MAXTO || GONE(Lown)) -> skip
       fi;
       b=0; do :: b<NA && (b==Lar || MARKED(b)) -> b++ :: else -> break od; assert(b<NA);
       mk[p]=b+1; if :: GONE(Lown) :: else -> tos++ fi; D=LD; Lep++; ep=Lep; Lar=b; ar=b; b=0; Lown=me; clearlists(); i=0; ins=0; printf("H%d TAKES OVER epoch %d area %d\n",me,ep,ar) }
SCAN: atomic { RUN; w=st[i];
       if :: KIND(w)==RDY && SEQ(w)<=D && (TAG(w)!=0 || EV(i,SEQ(w))) -> if :: MINE :: else -> goto FENCED fi
          :: else -> w=0; i++; if :: i<N -> goto SCAN :: else -> goto RHEAD fi fi }
     atomic { RUN; if :: st[i]==w -> assert(ms[body[i]]==1); st[i]=W(RDY,ep+1,SEQ(w)); cs[i]=SEQ(w); ins++; i++; w=0; if :: i<N -> goto SCAN :: else -> goto RHEAD fi
                      :: else -> w=0; goto SCAN fi }
RHEAD: atomic { RUN; H=hseq; k=hseq; i=hslot }
WALK: atomic { RUN; if :: k<=D -> i=0; k=0; goto RINS :: else fi; w=st[i]; if :: MINE -> assert(KIND(w)==RDY && SEQ(w)==k) :: else -> goto FENCED fi;
       st[i]=W(RDY,ep+1,k); cs[i]=k; ins++; i=nxt[i]; k--; w=0; goto WALK }
RINS: atomic { RUN; if :: i<N -> if :: cs[i]!=0 -> insert(i,W(RDY,ep+1,cs[i])); cs[i]=0 :: else fi; i++; goto RINS :: else -> i=0 fi }
     atomic { RUN; consumed[ar]=H-ins; ins=0; if :: MINE && LD==D -> LD=H; D=H :: else -> goto FENCED fi; H=0 }
DRAIN: atomic { RUN; H=hseq; k=hseq; i=hslot; do :: k>D -> cs[i]=k; i=nxt[i]; k-- :: else -> break od; k=0; i=0;
       if :: H==D -> H=0; goto CLAIM :: else fi;
       if :: MINE -> x=0; do :: x==N -> break :: else -> assert(cs[x]==0 || st[x]==W(RDY,0,cs[x])); x++ od; x=0 :: else -> goto FENCED fi }
DINS: atomic { RUN; if :: i<N -> if :: cs[i]!=0 -> insert(i,W(RDY,0,cs[i])); cs[i]=0 :: else fi; i++; goto DINS :: else -> i=0 fi }
     atomic { RUN; if :: MINE && LD==D -> LD=H; D=H :: else -> goto FENCED fi; H=0 }
CLAIM: atomic { RUN; s=255; x=0; do :: x==N -> break :: else -> if :: node[ar*N+x]!=0 && (s==255 || SEQ(node[ar*N+x])<SEQ(node[ar*N+s])) -> s=x :: else fi; x++ od; x=0;
       if :: s==255 -> s=0; goto UNLOCK :: else -> ledger[2*p+1]=s+1 fi }
     atomic { RUN; if :: st[s]==node[ar*N+s] -> m=body[s]; assert(ms[m]==1); ms[m]=2; st[s]=W(TKN,own,0); node[ar*N+s]=0; printf("H%d CLAIMS m%d slot %d\n",me,m,s)
                      :: else -> goto FENCED fi }
     atomic { RUN; consumed[ar]=consumed[ar]+1 }
UNLOCK: atomic { RUN; if :: MINE && LD==D -> Lheld=0; Lown=255 :: else -> clearlists() fi; ep=0; ar=0; D=0; mk[p]=0; if :: m==0 -> goto CLOSE :: else fi }
     atomic { RUN; assert(st[s]==W(TKN,own,0) && body[s]==m && ms[m]==2); ms[m]=3; st[s]=FREE; body[s]=0; m=0; s=0; goto CLOSE }
FENCED: atomic { RUN; assert(!MINE); clearlists(); mk[p]=0; ep=0; ar=0; D=0; H=0; i=0; k=0; w=0; s=0; ins=0; x=0; do :: x==N -> break :: else -> cs[x]=0; x++ od; x=0; goto ACQ }
CLOSE: atomic { RUN; live[p]=0; jobs=0 }
     atomic { RUN; elock[p]=0; p=0; own=0; fin=fin|(1<<me) }
}

/* A kill: the kernel drops the locks of the dead; that may take a while, so it is a step of its own. */
proctype Killer() {
  byte n, t, v;
  do :: n<KILLS -> atomic { n++; if :: v=0 :: v=1 :: v=2
#if NH>3
        :: v=3
#endif
        fi; if :: !((fin>>v)&1) && !((stopped>>v)&1) -> dead=dead|(1<<v); printf("H%d DIES\n",v) :: else fi }
        atomic { if :: (dead>>v)&1 -> if :: elock[0]==v+1 -> elock[0]=0 :: else fi;
#if NE>1
                 if :: elock[1]==v+1 -> elock[1]=0 :: else fi;
#endif
                 :: else fi; v=0 }
     :: t<STOPS -> atomic { t++; if :: v=0 :: v=1 :: v=2 fi; if :: !((fin>>v)&1) && !((dead>>v)&1) -> stopped=stopped|(1<<v); printf("H%d STOPS\n",v) :: else fi; v=0 }
     :: break
  od }

/* When nothing moves: everybody who runs is done or rightly blocked; then the next drain and registrations are played: nothing leaks. */
proctype Final() {
  timeout ->
  d_step {
    x=0; do :: x==NH -> break
      :: else -> if :: GONE(x) || ((fin>>x)&1) -> skip
           :: else -> /* waits for an entry that a stopped one keeps or that somebody must drain for, or for room, or for a slot */
              y=0; z=0; do :: y==NE -> break :: else -> z=z+(elock[y]!=0 || undecided[y]==LD+1); y++ od;
              assert(z==NE || hseq+1>MAX+consumed[Lar] || Lheld || (st[0]!=FREE && st[1]!=FREE)) fi; x++ od;
    /* every published message that nobody claimed is found by a rebuild */
    x=0; y=0; do :: x==N -> break :: else -> y=y+(KIND(st[x])==RDY && SEQ(st[x])<=LD && (TAG(st[x])!=0 || EV(x,SEQ(st[x])))); x++ od;
    x=hslot; z=hseq; do :: z<=LD -> break :: else -> assert(KIND(st[x])==RDY && SEQ(st[x])==z && ms[body[x]]==1); ev[Lar*N+x]=z; y++; x=nxt[x]; z-- od;
    x=1; z=0; do :: x>NH -> break :: else -> z=z+(ms[x]==1); x++ od; assert(y==z);
    /* what ledgers name of the dead is freed; then every slot is free, queued, or held by one who is stopped */
    x=0; do :: x==2*NE -> break
      :: else -> if :: live[x/2] && ledger[x]!=0 && (elock[x/2]==0) ->
              y=ledger[x]-1; z=st[y];
              if :: (KIND(z)==RES || KIND(z)==TKN) && TAG(z)==OWN(x/2,gen[x/2]) -> st[y]=FREE; body[y]=0
                 :: KIND(z)==RDY && TAG(z)==0 && writer[y]==OWN(x/2,gen[x/2]) && (SEQ(z)>hseq || !EV(y,SEQ(z))) -> assert(ms[body[y]]==0); st[y]=FREE; body[y]=0
                 :: else fi
           :: else fi; x++ od;
    x=0; do :: x==N -> break
      :: st[x]==FREE || (KIND(st[x])==RDY && ms[body[x]]==1) -> x++
      :: else -> y=(KIND(st[x])==RDY -> writer[x] : TAG(st[x])); z=y&1; assert(z<NE && elock[z]!=0 && y==OWN(z,gen[z])); x++ od
  }
}
init { atomic { x=0; do :: x<NH -> run Handle(x); x++ :: else -> break od; x=0; run Killer(); run Final() } }
