/*
 * lease.pml: leases.  Claim, Ack, Extend, Retry, Release, the return of what is over or whose owner died, takeover and rebuild.
 *
 * Read queue.pml first: words, atomics, SEP, LIVE, MINE and the ghosts are as there.  New are
 *   - the state LEASED(tag, tok): tok is unique for each lease;
 *   - the record of a slot, two words beside it: rw = {seq, attempts, counted, version} and ra = {time, delays, version}.
 *     Only holders change it, each word by read, verify, CAS; the version makes the CAS of a fenced holder fail.
 *   - a clock.  A lease is over when its time has come.
 * Send and the alert word are as in queue.pml and left out where leases do not meet them (every look reads head).
 *
 * M_* are weakened rules, which must fail.
 */
#ifndef N
#define N 2                     /* slots */
#endif
#ifndef NA
#define NA 4                    /* index areas */
#endif
#ifndef MAX
#define MAX 2                   /* capacity */
#endif
#ifndef M
#define M 1                     /* messages, all of one producer (process 0) and one priority */
#endif
#ifndef NC
#define NC 2                    /* consumers: processes 2, 3 */
#endif
#ifndef OPS
#define OPS 1                   /* leases of each */
#endif
#ifndef MAXTO
#define MAXTO 1                 /* takeovers from live holders, at any moment */
#endif
#ifndef DEATHS
#define DEATHS 0
#endif
#ifndef TICKS
#define TICKS 1                 /* how far the clock goes */
#endif
#ifndef LEN
#define LEN 1                   /* a lease lasts so long */
#endif
#ifndef MORE
#define MORE 2                  /* Extend makes it last so long, from now */
#endif
#ifndef AFTER
#define AFTER 1                 /* Retry's delay */
#endif
#define FREE 0
#define RES 1
#define RDY 2
#define LSD 3
#define W(k,t,s) ((k)|((t)<<2)|((s)<<5))
#define KIND(w) ((w)&3)
#define TAG(w) (((w)>>2)&7)
#define SEQ(w) (((w)>>5)&15)   /* seq of READY, token of LEASED */
#define RW(q,n,c,v) ((q)|((n)<<3)|((c)<<6)|((v)<<7))
#define RSEQ(r) ((r)&7)
#define RATT(r) (((r)>>3)&7)
#define RCNT(r) (((r)>>6)&1)
#ifdef M_NOVERSION
#define RVER(r) 0
#define AVER(a) 0
#else
#define RVER(r) (((r)>>7)&15)
#define AVER(a) (((a)>>4)&15)
#endif
#define RA(t,d,v) ((t)|((d)<<3)|((v)<<4))
#define ATIME(a) ((a)&7)
#define ADEL(a) (((a)>>3)&1)
#if DEATHS>0
byte dead, ndead;
#define LIVE (!(dead & (1<<me)))
#define ISDEAD(p) ((dead>>(p))&1)
#else
#define LIVE true
#define ISDEAD(p) false
#endif
#ifdef FINE
#define SEP } atomic { LIVE
#else
#define SEP skip
#endif
typedef Area {
  short e[N];                   /* expected word while the slot is in the index, else 0 */
  byte q[N];                    /* evidence: the seq last inserted here; never cleared */
  byte del;                     /* bit i: node i waits in the heap for its time, */
  byte t[N];                    /* which is */
  byte cn                       /* consumed */
}
Area A[NA];
short st[N], rw[N]; byte ra[N];
byte nxt[N], body[N];
byte hseq, hslot;
byte Lep, Lar, LD; bit Lheld;
byte Lown;
byte mk[NC];
byte tos, started = 2;
byte clk;
byte ms[M+1];                   /* ghost: 0 not sent, 1 in the queue, 2 leased, 3 acknowledged */
byte retm[M+1];                 /* ghost: epoch+1 of who returned it: a fenced holder need not know */
byte gend[M+1];                 /* ghost: the end that the owner was promised */
byte nb[M+1];                   /* ghost: not to be delivered before */
byte fails[M+1];                /* ghost: failed deliveries */
byte own[M+1];                  /* ghost: token of the lease */
byte fin;
hidden byte x, y, qn, k2, tp, ls, Df, cne;
#define MINE (Lheld && Lep==ep && Lar==ar)
#if NA==4
#define EV(i,s) (A[0].q[i]==(s) || A[1].q[i]==(s) || A[2].q[i]==(s) || A[3].q[i]==(s))
#else
#define EV(i,s) (A[0].q[i]==(s) || A[1].q[i]==(s) || A[2].q[i]==(s))
#endif
#define DELAYED(i) ((A[ar].del>>(i))&1)
#define TOKOWN(t) (2+(((t)-1)/(OPS+0)))
#ifdef M_TOKSAME
#define TOK 1
#else
#define TOK ((me-2)*OPS+n+1)
#endif
#ifdef M_ACKCOUNTS
#define COUNTED skip
#else
#define COUNTED A[ar].cn=A[ar].cn+1
#endif

/* L5: who enlists a slot that still stands as leased counts the acknowledged one first. */
inline insert(sl,word,seq,rebuilding) {
#ifdef M_NOCOUNTATINSERT
  assert(A[ar].e[sl]==0 || !MINE);
#else
  assert(A[ar].e[sl]==0 || KIND(A[ar].e[sl])==LSD || !MINE);
  if :: KIND(A[ar].e[sl])==LSD -> if :: rebuilding -> ins-- :: else -> COUNTED fi :: else fi;
#endif
  A[ar].e[sl]=word; A[ar].q[sl]=seq;
  /* delayed by a retry: only if the record is this message's, and says so */
  if
#ifdef M_NODELAYBIT
  :: KIND(word)==RDY && RSEQ(rw[sl])==seq && ATIME(ra[sl])>clk -> A[ar].del=A[ar].del|(1<<sl); A[ar].t[sl]=ATIME(ra[sl])
#else
  :: KIND(word)==RDY && RSEQ(rw[sl])==seq && ADEL(ra[sl]) && ATIME(ra[sl])>clk -> A[ar].del=A[ar].del|(1<<sl); A[ar].t[sl]=ATIME(ra[sl])
#endif
  :: else -> A[ar].del=A[ar].del&(255-(1<<sl)) fi
}
inline wipe() { A[ar].del=0; x=0; do :: x<N -> A[ar].e[x]=0; A[ar].t[x]=0; x++ :: else -> break od; x=0 }

proctype Prod(byte me) {
  byte m=1, s, h, hs;
G: atomic { LIVE; s=0; do :: s<N && st[s]!=FREE -> s++ :: else -> break od; (s<N);
       st[s]=W(RES,me,0); body[s]=m }
R: atomic { LIVE; h=hseq; hs=hslot; if :: h+1 > MAX+A[Lar].cn -> h=0; hs=0; goto FW :: else -> nxt[s]=hs fi }
   atomic { LIVE; st[s]=W(RDY,0,h+1) }
   atomic { LIVE; assert(hseq==h && hslot==hs); hseq=h+1; hslot=s; ms[m]=1; printf("P SENDS m%d seq %d slot %d\n",m,h+1,s);
       qn=0; y=1; do :: y>M -> break :: else -> qn=qn+(ms[y]==1||ms[y]==2); y++ od; assert(qn<=MAX); y=0;
       s=0; h=0; hs=0; m++; if :: m<=M -> goto G :: else -> m=0; fin=fin|1; goto END fi }
FW: atomic { LIVE && hseq+1 <= MAX+A[Lar].cn -> goto R }
END: skip
}

#define NONE 0
#define EXTEND 1
#define RETRY 2                 /* failed: later */
#define RELEASE 3               /* given back: at once, not counted */

proctype Cons(byte me) {
  byte n, ep, ar, b, D, H, nx, i, k, ins, snap, m, want, mine, el; short w, r; byte a;
ACQ: atomic { LIVE && (started>=me || (me==3 && ISDEAD(2)));
       if
       :: !Lheld -> ep=Lep; ar=Lar; D=LD
       :: Lheld && (tos<MAXTO || ISDEAD(Lown)) -> ep=Lep; ar=Lar; D=LD; if :: started<=me -> started=me+1 :: else fi; goto TAKE
       fi; if :: started<=me -> started=me+1 :: else fi; SEP; mk[me-2]=ar+1; SEP;
       if :: !Lheld && Lep==ep && Lar==ar && LD==D -> Lheld=1; Lown=me; i=0; goto COL
          :: else -> ep=0; ar=0; D=0; mk[me-2]=0; goto ACQ fi }
TAKE: atomic { LIVE;
       b=0; do :: b==NA -> assert(false) :: b<NA && (b==ar || mk[0]==b+1 || mk[1]==b+1) -> b++ :: else -> break od; mk[me-2]=b+1; SEP;
       if :: MINE && LD==D -> if :: ISDEAD(Lown) :: else -> tos++ fi; (tos<=MAXTO);
             ep++; Lep=ep; Lar=b; Lown=me; printf("C%d TAKES OVER epoch %d area %d\n",me,ep,b); ar=b; b=0; wipe(); i=0; ins=0
          :: else -> ep=0; ar=0; b=0; D=0; mk[me-2]=0; goto ACQ fi }
SCAN: atomic { LIVE; w=st[i];
       if
       :: KIND(w)==RDY && SEQ(w)<=D && (TAG(w)!=0 || EV(i,SEQ(w)))
       :: KIND(w)==LSD -> goto SCANL
       :: else -> w=0; i++; if :: i<N -> goto SCAN :: else -> goto RHEAD fi
       fi; SEP; if :: MINE :: else -> goto FENCED fi }
     atomic { LIVE;
       if :: st[i]==w -> st[i]=W(RDY,ep+1,SEQ(w)); insert(i,st[i],SEQ(w),true); ins++; w=0; assert(ms[body[i]]==1);
             i++; if :: i<N -> goto SCAN :: else -> goto RHEAD fi
          :: else -> w=0; goto SCAN fi }
SCANL: atomic { LIVE; nx=RSEQ(rw[i]); SEP; if :: MINE :: else -> goto FENCED fi }
     atomic { LIVE;
#ifdef M_NORETAG
       A[ar].e[i]=w; A[ar].q[i]=nx; ins++; w=0; nx=0; i++; if :: i<N -> goto SCAN :: else -> goto RHEAD fi
#else
       if :: st[i]==w -> st[i]=W(LSD,ep+1,SEQ(w)); A[ar].e[i]=st[i]; A[ar].q[i]=nx; ins++; assert(ms[body[i]]==2); printf("C%d scan: slot %d is leased, tok %d\n",me,i,SEQ(w));
             w=0; nx=0; i++; if :: i<N -> goto SCAN :: else -> goto RHEAD fi
          :: else -> w=0; nx=0; goto SCAN fi
#endif
     }
RHEAD: atomic { LIVE; H=hseq; k=hseq; i=hslot; if :: k>D -> goto WALK :: else -> goto RDONE fi }
WALK: atomic { LIVE; w=st[i]; nx=nxt[i]; SEP; if :: MINE -> assert(KIND(w)==RDY && SEQ(w)==k) :: else -> goto FENCED fi }
     atomic { LIVE;
       if :: st[i]==w -> st[i]=W(RDY,ep+1,k); insert(i,st[i],k,true); ins++; w=0; i=nx; nx=0; k--; if :: k>D -> goto WALK :: else -> goto RDONE fi
          :: else -> w=0; nx=0; goto WALK fi }
RDONE: atomic { LIVE; A[ar].cn=H-ins; ins=0; k=0; i=0; SEP; if :: MINE && LD==D -> LD=H; D=H :: else -> goto FENCED fi; H=0 }

/* ---- Collect: what was acknowledged is counted, what is over goes back to its old place ---- */
COL: atomic { LIVE;
       do :: i<N && KIND(A[ar].e[i])==LSD -> break :: i<N && KIND(A[ar].e[i])!=LSD -> i++ :: i==N -> i=0; goto DUE od;
       w=st[i]; a=ra[i]; SEP;
       if
       :: w==A[ar].e[i] ->
          if
          :: ISDEAD(TOKOWN(SEQ(w))) -> w=0; goto FAIL
          :: ATIME(a)<=clk -> w=0; goto FAIL
          :: else -> w=0; a=0; i++; goto COL
          fi
       :: else -> w=0; a=0;
#ifndef M_NOVERIFYACKED
          if :: MINE :: else -> goto FENCED fi;                                       /* L4 */
#endif
          printf("C%d counts slot %d, acknowledged\n",me,i);
          A[ar].e[i]=0; i++; COUNTED; goto COL
       fi }
/* The delivery failed: count it once, though a collector dies in between; then it is not delayed; then the CAS. */
FAIL: atomic { LIVE; r=rw[i]; SEP; if :: MINE :: else -> goto FENCED fi;
#ifdef M_NOCOUNTED
       }
#else
       if :: RCNT(r) -> goto UNDELAY :: else fi }
#endif
     atomic { LIVE; if :: rw[i]==r -> rw[i]=RW(RSEQ(r),RATT(r)+1,1,RVER(r)+1); r=0 :: else -> r=0; goto FAIL fi }
UNDELAY: atomic { LIVE; r=0; a=ra[i]; SEP; if :: MINE :: else -> goto FENCED fi;
#ifdef M_WRITEIFNEEDED
       if :: !ADEL(a) -> goto RET :: else fi
#endif
       }
     /* written even if it says so already: then what a fenced holder is about to write fails */
     atomic { LIVE; if :: ra[i]==a -> ra[i]=RA(ATIME(a),0,AVER(a)+1) :: else -> goto UNDELAY fi }
RET: atomic { LIVE; a=0;
       if :: st[i]==A[ar].e[i] -> m=body[i]; assert(ms[m]==2);
             assert(ISDEAD(TOKOWN(SEQ(st[i]))) || clk>=gend[m]);                     /* nobody loses a lease before its time */
             ms[m]=1; retm[m]=ep+1; own[m]=0; gend[m]=0; nb[m]=0; fails[m]=fails[m]+1; assert(fails[m]==RATT(rw[i])); printf("C%d RETURNS slot %d m%d\n",me,i,m);
             m=(want!=NONE -> m : 0); m=0; st[i]=W(RDY,ep+1,A[ar].q[i]); A[ar].e[i]=st[i]; i++; goto COL
          :: else -> goto COL fi }                                                   /* acknowledged, or fenced: COL finds out */
DUE: atomic { LIVE; el=clk; x=0; do :: x==N -> break :: else -> if :: DELAYED(x) && A[ar].t[x]<=el -> A[ar].del=A[ar].del&(255-(1<<x)) :: else fi; x++ od; x=0;
       if :: want!=NONE -> goto MINEYET :: else fi }
LOOK: atomic { LIVE; H=hseq; k=hseq; i=hslot; snap=0; y=1;
        do :: y>M -> break :: else -> snap=snap|((ms[y]==1 && nb[y]<=el && (MINE || retm[y]<=ep+1))<<y); y++ od; y=0;
        if :: k>D -> goto LINKS :: else -> H=0; k=0; i=0; goto TOP fi }
/* one step for the links, then the verify; the nodes are written oldest first */
LINKS: atomic { LIVE; if :: MINE :: else -> goto FENCED fi }
DINS: atomic { LIVE; i=hslot; k=hseq; do :: k>H -> i=nxt[i]; k-- :: k<=H -> break od; do :: k>D+1 -> i=nxt[i]; k-- :: else -> break od;
       insert(i,W(RDY,0,k),k,false); D++; if :: D<H -> goto DINS :: else -> i=0; k=0 fi }
PUB: atomic { LIVE; D=H; if :: MINE && LD<=H -> LD=H :: else -> goto FENCED fi; H=0 }
TOP: atomic { LIVE;
       tp=255; x=0;
       do :: x==N -> break
          :: else -> if :: KIND(A[ar].e[x])==RDY && !DELAYED(x) && (tp==255 || SEQ(A[ar].e[x])<SEQ(A[ar].e[tp])) -> tp=x :: else fi; x++ od; x=0;
       if :: tp==255 -> assert(snap==0); m=0; snap=0; tp=0; goto UNLOCK
          :: else -> i=tp; tp=0 fi }
/* ---- Claim: the record first ---- */
CREC: atomic { LIVE; r=rw[i]; SEP; if :: MINE :: else -> goto FENCED fi }
     atomic { LIVE; if :: rw[i]==r -> if :: RSEQ(r)==SEQ(A[ar].e[i]) -> rw[i]=RW(RSEQ(r),RATT(r),0,RVER(r)+1)
                                         :: else -> rw[i]=RW(SEQ(A[ar].e[i]),0,0,RVER(r)+1) fi; r=0
                       :: else -> r=0; goto CREC fi }
CTIME: atomic { LIVE; a=ra[i]; SEP; if :: MINE :: else -> goto FENCED fi }
     atomic { LIVE; if :: ra[i]==a -> ra[i]=RA(clk+LEN,0,AVER(a)+1); b=clk+LEN; a=0 :: else -> a=0; goto CTIME fi }
     atomic { LIVE;
       if
       :: st[i]==A[ar].e[i] -> m=body[i]; assert(ms[m]==1 && nb[m]<=clk); assert(RATT(rw[i])==fails[m]);
          y=0; do :: y==N -> break
                  :: else -> if :: body[y]!=0 && KIND(st[y])==RDY && ms[body[y]]==1 && ((snap>>body[y])&1) -> assert(!(SEQ(st[y])<SEQ(A[ar].e[i]))) :: else fi; y++ od; y=0;
          ms[m]=2; retm[m]=0; gend[m]=b; own[m]=(me-2)*OPS+n+1; printf("C%d LEASES slot %d m%d until %d, failed %d\n",me,i,m,b,fails[m]);
          st[i]=W(LSD,ep+1,TOK); A[ar].e[i]=st[i]; mine=i+1; b=0
       :: else -> b=0; goto FENCED
       fi; snap=0 }
UNLOCK: atomic { LIVE; if :: MINE && LD==D -> Lheld=0; Lown=0 :: else -> wipe() fi; ep=0; D=0; SEP; mk[me-2]=0; ar=0; i=0; el=0; snap=0; a=0; r=0; w=0; want=NONE;
       if :: m==0 -> goto NEXT :: else fi }
/* ---- The owner acknowledges, without the lock; or asks for more, gives back, or does nothing ---- */
OWNER: atomic { LIVE;
       if
       :: true
#ifdef WITHEXTEND
       :: mine!=0 && el==0 -> want=EXTEND; goto ACQ
#endif
#ifdef WITHRETRY
       :: want=RETRY; goto ACQ
#endif
#ifdef WITHRELEASE
       :: want=RELEASE; goto ACQ
#endif
       :: goto NEXT
       fi }
ACK: atomic { LIVE; i=mine-1; w=st[i]; if :: KIND(w)==LSD && SEQ(w)==TOK :: else -> printf("C%d too late for m%d\n",me,m); goto NEXT fi }
     atomic { LIVE; if :: st[i]==w -> assert(body[i]==m && ms[m]==2 && own[m]==(me-2)*OPS+n+1);
             ms[m]=3; gend[m]=0; own[m]=0; st[i]=FREE; body[i]=0; nxt[i]=0; printf("C%d ACKS m%d slot %d\n",me,m,i);
#ifdef M_ACKCOUNTS
             goto CTR
#else
             goto NEXT
#endif
          :: else -> w=0; goto ACK fi }
#ifdef M_ACKCOUNTS
CTR: atomic { LIVE; b=Lar }
     atomic { LIVE; A[b].cn=A[b].cn+1; b=0 }
#endif
NEXT: atomic { LIVE; w=0; m=0; i=0; mine=0; el=0; n++; if :: n<OPS -> goto ACQ :: else -> n=0; fin=fin|(1<<me); goto END fi }

/* ---- With the lock, by the owner of a lease ---- */
MINEYET: atomic { LIVE; i=mine-1; w=st[i]; SEP; if :: MINE :: else -> goto FENCED fi;
       if :: KIND(w)==LSD && SEQ(w)==TOK -> assert(A[ar].e[i]==w)
          :: else -> w=0; m=0; goto UNLOCK fi;                                       /* lost: nothing is changed */
       w=0; m=body[i];
       if :: want==EXTEND -> goto LONGER :: want==RETRY -> goto ONEMORE :: want==RELEASE -> goto NOTLATER fi }
LONGER: atomic { LIVE; a=ra[i]; SEP; if :: MINE :: else -> goto FENCED fi }
     atomic { LIVE; b=clk+MORE; if :: ra[i]==a -> ra[i]=RA(b,0,AVER(a)+1); a=0 :: else -> a=0; b=0; goto LONGER fi }
     /* Was it ours when we wrote? Else somebody may have read the old end. */
#ifdef M_EXTENDNOVERIFY
     atomic { LIVE; if :: own[m]==(me-2)*OPS+n+1 && ms[m]==2 -> gend[m]=b :: else fi; b=0; el=1; want=NONE }
#else
     atomic { LIVE; if :: MINE -> assert(ms[m]==2 && own[m]==(me-2)*OPS+n+1); gend[m]=b; printf("C%d EXTENDS m%d until %d\n",me,m,b) :: else -> b=0; goto FENCED fi; b=0; el=1; want=NONE }
#endif
     atomic { LIVE; if :: MINE && LD==D -> Lheld=0; Lown=0 :: else -> wipe() fi; ep=0; D=0; mk[me-2]=0; ar=0; i=0; goto OWNER }
ONEMORE: atomic { LIVE; r=rw[i]; SEP; if :: MINE :: else -> goto FENCED fi; if :: RCNT(r) -> goto LATER :: else fi }
     atomic { LIVE; if :: rw[i]==r -> rw[i]=RW(RSEQ(r),RATT(r)+1,1,RVER(r)+1); r=0 :: else -> r=0; goto ONEMORE fi }
LATER: atomic { LIVE; r=0; a=ra[i]; SEP; if :: MINE :: else -> goto FENCED fi }
#ifndef M_RETRYTIMELATE
     atomic { LIVE; b=clk+AFTER; if :: ra[i]==a -> ra[i]=RA(b,1,AVER(a)+1); a=0; if :: own[m]==(me-2)*OPS+n+1 && gend[m]>b -> gend[m]=b :: else fi   /* the owner gave the rest up */
                                :: else -> a=0; b=0; goto LATER fi }
#else
     atomic { LIVE; b=clk+AFTER }
#endif
     atomic { LIVE;
       if :: st[i]==A[ar].e[i] -> assert(ms[m]==2 && own[m]==(me-2)*OPS+n+1); ms[m]=1; retm[m]=ep+1; own[m]=0; gend[m]=0; nb[m]=b; fails[m]=fails[m]+1;
             assert(fails[m]==RATT(rw[i])); printf("C%d RETRIES m%d at %d\n",me,m,b);
             st[i]=W(RDY,ep+1,A[ar].q[i]); A[ar].e[i]=st[i]; if :: b>clk -> A[ar].del=A[ar].del|(1<<i); A[ar].t[i]=b :: else fi; b=0; m=0
          :: else -> b=0; goto FENCED fi }
#ifdef M_RETRYTIMELATE
     atomic { LIVE; if :: ra[i]==a -> ra[i]=RA(clk+AFTER,1,AVER(a)+1) :: else fi }
#endif
     goto UNLOCK;
/* Given back: uncount what a fenced collector may have counted, and no delay. */
NOTLATER: atomic { LIVE; r=rw[i]; SEP; if :: MINE :: else -> goto FENCED fi }
     atomic { LIVE; if :: rw[i]==r -> rw[i]=RW(RSEQ(r),RATT(r)-RCNT(r),0,RVER(r)+1); r=0 :: else -> r=0; goto NOTLATER fi }
NODELAY: atomic { LIVE; a=ra[i]; SEP; if :: MINE :: else -> goto FENCED fi }
     atomic { LIVE; if :: ra[i]==a -> ra[i]=RA(ATIME(a),0,AVER(a)+1); a=0 :: else -> a=0; goto NODELAY fi }
GIVE: atomic { LIVE;
       if :: st[i]==A[ar].e[i] -> assert(ms[m]==2 && own[m]==(me-2)*OPS+n+1); ms[m]=1; retm[m]=ep+1; own[m]=0; gend[m]=0; nb[m]=0; printf("C%d GIVES BACK m%d\n",me,m);
             st[i]=W(RDY,ep+1,A[ar].q[i]); A[ar].e[i]=st[i]; m=0; goto UNLOCK
          :: else -> goto FENCED fi }

FENCED: atomic { LIVE; printf("C%d is fenced\n",me); assert(!MINE); wipe(); mk[me-2]=0; ep=0; ar=0; b=0; D=0; H=0; w=0; nx=0; i=0; k=0; ins=0; snap=0; el=0; r=0; a=0;
       if :: want==NONE -> m=0 :: else fi; goto ACQ }
END: skip
}

proctype Clock() { do :: clk<TICKS -> atomic { clk++; printf("the clock is %d\n",clk) } :: clk==TICKS -> break :: break od }

/* When nothing moves any more: nothing is lost, the counts agree, a rebuild would find what is there. */
proctype Final() {
  timeout ->
  d_step {
    x=2; do :: x<2+NC -> assert(ISDEAD(x) || ((fin>>x)&1)); x++ :: else -> break od;
    Df=LD;
    qn=0; ls=0; y=1; do :: y>M -> break :: else -> qn=qn+(ms[y]==1); ls=ls+(ms[y]==2); y++ od;
    cne=hseq-qn-ls;
    if :: !Lheld ->
       x=0; k2=0; y=0; tp=0;
       do :: x==N -> break
          :: else -> if :: KIND(A[Lar].e[x])==RDY -> assert(A[Lar].e[x]==st[x] && ms[body[x]]==1 && A[Lar].q[x]==SEQ(st[x])); k2++
                       :: KIND(A[Lar].e[x])==LSD -> if :: st[x]==A[Lar].e[x] -> assert(ms[body[x]]==2 && A[Lar].q[x]==RSEQ(rw[x])); y++ :: else -> tp++ fi
                       :: else fi; x++ od;
       assert(k2+(hseq-Df)==qn); assert(y==ls);
       assert(A[Lar].cn+qn+ls+tp==hseq);
    :: else -> assert(ISDEAD(Lown)) fi;
    x=0; k2=0;
    do :: x==N -> break
       :: else -> if :: KIND(st[x])==RDY && SEQ(st[x])<=Df && (TAG(st[x])!=0 || EV(x,SEQ(st[x]))) -> assert(ms[body[x]]==1); qn-- :: KIND(st[x])==LSD -> assert(ms[body[x]]==2); ls-- :: else fi; x++ od;
    x=hslot; y=hseq;
    do :: y<=Df -> break
       :: else -> assert(KIND(st[x])==RDY && SEQ(st[x])==y && ms[body[x]]==1); qn--; x=nxt[x]; y-- od;
    assert(qn==0 && ls==0);
    assert(ISDEAD(0) || (fin&1) || Lheld || hseq+1>MAX+A[Lar].cn || (st[0]!=FREE && st[N-1]!=FREE))
  }
}
#if DEATHS>0
proctype Killer() {
  byte v;
  do :: ndead<DEATHS -> atomic { if :: v=2 :: v=3 fi; ndead++; if :: !(fin & (1<<v)) -> dead=dead|(1<<v); printf("process %d DIES\n",v) :: else fi; v=0 }
  :: ndead==DEATHS -> break
  :: break od
}
#endif
init { atomic { run Prod(0); fin=fin|2; run Cons(2); run Cons(3);
#if DEATHS>0
  run Killer();
#endif
  run Clock(); run Final() } }
